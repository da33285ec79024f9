"""The processes of a group connect, and print which are missing."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from palr_jax.errors import UserError
from palr_jax.parallel import roll_call
from palr_jax.parallel.roll_call import Link, meet, named


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that run at the same time, or the error that each ends in."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def connected(port: int) -> socket.socket:
    """A connection to the port, once somebody listens there."""
    one = socket.socket()
    while one.connect_ex(("localhost", port)):
        time.sleep(0.01)
    return one


def test_all_meet_and_the_port_is_free_again(port: int) -> None:
    found = together(*[lambda i=i: meet("localhost", port, i, 4, 30) for i in (3, 0, 2, 1)])
    assert [sorted(links) for links in found] == [[0], [1, 2, 3], [0], [0]]
    with socket.create_server(("", port)):  # as JAX does, while the links are there
        for index, place in ((1, 3), (2, 2), (3, 0)):
            found[place][0].send({"from": index})
            assert found[1][index].receive() == [{"from": index}]
    for links in found:
        for link in links.values():
            link.close()


def test_the_missing_are_named_everywhere(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roll_call, "_SAY_SECONDS", 0.5)
    found = together(*[lambda i=i: meet("localhost", port, i, 5, 3) for i in (0, 1, 3)])
    late = f"waited 3 s for processes 2 and 4 to connect to localhost:{port}"
    assert found[0].startswith(f"{late} (connected: processes 1 and 3): start the same command")
    assert all(line == found[0] for line in found), found
    said = capsys.readouterr().err
    assert f"waiting for processes 1 to 4 to connect to localhost:{port}\n" in said
    missing = "waiting for processes 2 and 4"
    assert f"{missing} to connect to localhost:{port} (connected: processes 1 and 3" in said
    assert f"connected to process 0 at localhost:{port}; {missing}" in said


def test_a_leader_that_never_comes_is_named(port: int) -> None:
    with pytest.raises(UserError, match=rf"waited 1 s for process 0 at localhost:{port} \(Conn"):
        meet("localhost", port, 1, 2, 1)


def test_a_host_that_is_unknown_is_named() -> None:
    with pytest.raises(UserError, match=r"waited 1 s for process 0 at no.such.host.invalid:1 \("):
        meet("no.such.host.invalid", 1, 1, 2, 1)


def test_another_number_of_processes_is_refused(port: int) -> None:
    leader, follower = together(
        lambda: meet("localhost", port, 0, 3, 2), lambda: meet("localhost", port, 1, 2, 2)
    )
    assert "waited 2 s for processes 1 to 2" in leader
    assert "was started with --processes 3, and process 1 with 2: start all" in follower


def test_two_of_one_index_are_refused(port: int) -> None:
    _, *both = together(
        lambda: meet("localhost", port, 0, 3, 3),
        lambda: meet("localhost", port, 1, 3, 3),
        lambda: meet("localhost", port, 1, 3, 3),
    )
    assert len([line for line in both if "process 1 is connected already" in line]) == 1
    assert len([line for line in both if "waited 3 s for process 2" in line]) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b"{}\n",
        b"\xff\n",
        b'{"process": true, "processes": 2}\n',
        b'{"process": 7, "processes": 2}\n',
        b"[" * 9999 + b"\n",
    ],
)
def test_strangers_at_the_port_change_nothing(port: int, sent: bytes) -> None:
    knocked = threading.Event()

    def knock() -> None:
        with connected(port) as stranger:
            stranger.sendall(sent)
        knocked.set()

    def follow() -> dict[int, Link]:
        assert knocked.wait(30)  # later, nobody listens any more
        return meet("localhost", port, 1, 2, 30)

    links, _, _ = together(lambda: meet("localhost", port, 0, 2, 30), knock, follow)
    assert sorted(links) == [1]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_stranger_at_the_leaders_port_is_reported(
    port: int, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("localhost", port)) as stranger:
        stranger.settimeout(10)

        def answer_once() -> None:
            connection, _ = stranger.accept()
            connection.sendall(answer)
            time.sleep(3)  # and keeps the connection open
            connection.close()

        _, line = together(answer_once, lambda: meet("localhost", port, 1, 2, 2))
    assert f"waited 2 s for process 0 at localhost:{port}" in line


def test_a_process_may_leave_and_join_again(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    def come() -> dict[int, Link]:
        with connected(port) as first:
            first.sendall(b'{"process": 1, "processes": 3}\n')
        return meet("localhost", port, 1, 3, 30)

    found = together(
        lambda: meet("localhost", port, 0, 3, 30), come, lambda: meet("localhost", port, 2, 3, 30)
    )
    assert sorted(found[0]) == [1, 2]


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([3], "process 3"),
        ([1, 2], "processes 1 to 2"),
        ([2, 1, 4], "processes 1 to 2 and 4"),
        ([1, 3, 5, 6, 7], "processes 1, 3 and 5 to 7"),
    ],
)
def test_processes_are_named_in_short(indices: list[int], expected: str) -> None:
    assert named(indices) == expected
