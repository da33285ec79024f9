"""`palr serve` as a process of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.locations import ROOT
from tests.xla import flags

HISTORY = ["Story, 3 (1953)", "Story, 5 (1955)"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command(run: Path, port: int, *more: str) -> subprocess.Popen[str]:
    code = "import sys; from palr_jax.cli import main; sys.exit(main())"
    arguments = ["serve", "--run", str(run), "--port", str(port), "--max-batch", "1", *more]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags()}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextmanager
def running(run: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    port = free_port()
    process = command(run, port, *more)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            until_ready(process, client)
            yield process, client
        finally:
            process.kill()
            process.communicate()


def until_ready(process: subprocess.Popen[str], client: httpx.Client) -> None:
    statuses = set()
    while process.poll() is None:
        with suppress(httpx.TransportError):
            statuses.add(client.get("/readyz").status_code)
        if 200 in statuses:
            return
        assert statuses <= {503}
        time.sleep(0.1)
    raise AssertionError(process.communicate()[1])


def failure(run: Path, *more: str) -> str:
    """What a server that cannot start says."""
    process = command(run, free_port(), *more)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    line = said.strip().splitlines()[-1]
    assert line.startswith("palr: ")
    return line


def load(
    client: httpx.Client, pool: ThreadPoolExecutor, count: int
) -> list[Future[httpx.Response]]:
    histories = [[f"Story, {n} ({1950 + n})", *HISTORY] for n in range(10, 10 + count)]
    return [
        pool.submit(client.post, "/v1/recommend", json={"histories": [history], "explain": True})
        for history in histories
    ]


def test_sigterm_finishes_what_is_in_flight(world: Path) -> None:
    with running(world / "runs/tiny") as (process, client), ThreadPoolExecutor(8) as pool:
        client.post("/v1/recommend", json={"histories": [HISTORY]}).raise_for_status()
        asked = load(client, pool, 8)
        deadline = time.monotonic() + 30
        while (
            "palr_queue_length 0.0" in client.get("/metrics").text and time.monotonic() < deadline
        ):
            pass
        process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert all(len(answer.json()["slates"][0]["items"]) == 10 for answer in answers)
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/healthz")


def test_sigkill_leaves_nothing_that_hinders_the_next(world: Path) -> None:
    run = world / "runs/tiny"
    before = sorted(path for path in run.rglob("*"))
    with running(run) as (process, client), ThreadPoolExecutor(4) as pool:
        asked = load(client, pool, 4)
        process.kill()
        for one in asked:
            assert one.exception() is not None or one.result().status_code == 200
    assert sorted(path for path in run.rglob("*")) == before


def test_a_run_that_is_rewritten_is_served_as_it_was(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(world / "runs/tiny", run)
    with running(run) as (_, client):
        ask = {"histories": [HISTORY], "k": 5}
        first = client.post("/v1/recommend", json=ask).json()["slates"]
        for file in [path for path in run.rglob("*") if path.is_file()]:
            file.write_bytes(b"half")
        ask["exclude"] = [[]]
        other = client.post("/v1/recommend", json={**ask, "explain": True}).json()["slates"]
        titles = [[item["title"] for item in slate["items"]] for slate in (first[0], other[0])]
        assert titles[0] == titles[1]
    assert "tiny" in failure(run)  # what is half-written is not served


def test_what_cannot_be_served_is_one_line(world: Path, tmp_path: Path) -> None:
    assert "is not a run directory" in failure(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("# none\n")
    assert "holds no key" in failure(world / "runs/tiny", "--api-key-file", str(keys))
    assert "--queue is at least 1" in failure(world / "runs/tiny", "--queue", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = failure(world / "runs/tiny", "--port", str(taken.getsockname()[1]))
    assert "cannot be listened on" in line


def test_a_thousand_connections(world: Path) -> None:
    with running(world / "runs/tiny", "--queue", "16") as (_, client):
        body = b'{"histories": [["Story, 3 (1953)"]], "k": 2}'
        head = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        request = head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        address = (client.base_url.host, client.base_url.port)
        sockets = [socket.create_connection(address, timeout=60) for _ in range(1_000)]
        for one in sockets:
            one.sendall(request + body)
        statuses = []
        for one in sockets:
            with one, one.makefile("rb") as answer:
                statuses.append(answer.read().split(b" ", 2)[1])
        assert {*statuses} <= {b"200", b"503"}
        assert statuses.count(b"200") >= 16
        assert client.get("/healthz").status_code == 200
