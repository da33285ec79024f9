"""Load on a server: requests a second, latency, memory, and whether every answer is right.

    python tools/bench/serving.py --run runs/quickstart

Starts `palr serve` on the run and sends it 10,000 requests with 1, 8 and 64 clients each, each with
the history of some user, cut at random. No answers are kept, so that each request
is computed. Every answer is compared with `Recommender.recommend` called for that history alone,
whose time is the one to beat. Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np

from palr_jax import Recommender
from palr_jax.io.compile_cache import keep_programs

K = 10
CLIENTS = (1, 8, 64)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Ask:
    """A history, and what is right."""

    history: list[str]
    titles: list[str]
    scores: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=1_000, help="histories")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    asks, alone = right_answers(arguments.run, arguments.distinct, arguments.seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from palr_jax.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--run", str(arguments.run), "--port", str(port),
         "--cache", "0", "--max-batch", str(arguments.max_batch)],
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        seconds = until_ready(url, process)
        found: dict[str, Any] = {
            "cores": os.cpu_count(),
            "seconds until ready": round(seconds, 1),
            "alone": alone,
        }
        rng = np.random.default_rng(arguments.seed)
        order = rng.integers(0, len(asks), arguments.requests)
        memory = [resident(process.pid)]
        for clients in CLIENTS:
            found[f"{clients} clients"] = asyncio.run(load(url, asks, order, clients))
            memory.append(resident(process.pid))
        found["resident MB, before and after each"] = memory
        text = httpx.get(f"{url}/metrics").text.splitlines()
        found["programs compiled late"] = next(
            float(line.split()[1])
            for line in text
            if line.startswith("palr_programs_compiled_late ")
        )
    finally:
        process.terminate()
        process.wait()
    print(json.dumps(found, indent=1))


def right_answers(run: Path, count: int, seed: int) -> tuple[list[Ask], dict[str, float]]:
    """Histories with what the recommender says of each alone, and how long that takes."""
    keep_programs()
    recommender = Recommender.load(run)
    rng = np.random.default_rng(seed)
    users = rng.choice(recommender.prepared.split.user_ids, count)
    asks: list[Ask] = []
    seconds: list[float] = []
    for repeat in (False, True):  # the first round compiles
        for number, user in enumerate(users):
            if not repeat:
                whole = recommender.history_of(str(user))
                history = whole[: int(rng.integers(1, len(whole)))][-200:]
            else:
                history = asks[number].history
            start = time.perf_counter()
            (slate,) = recommender.recommend([history], K)
            seconds.append(time.perf_counter() - start)
            if not repeat:
                scores = np.array([item.score for item in slate])
                asks.append(Ask(history, [item.title for item in slate], scores))
    return asks, summary(seconds[count:], sum(seconds[count:]))


def until_ready(url: str, process: subprocess.Popen[bytes]) -> float:
    start = time.perf_counter()
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return time.perf_counter() - start
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not start")


async def load(url: str, asks: list[Ask], order: np.ndarray, clients: int) -> dict[str, float]:
    """Sends the requests; each client sends its next one when it has the answer."""
    seconds: list[float] = []
    todo, wrong, lost, refused = iter(order.tolist()), 0, 0, 0

    async def client() -> None:
        nonlocal wrong, lost, refused
        for number in todo:
            ask, body = asks[number], {"histories": [asks[number].history], "k": K}
            while True:
                start = time.perf_counter()
                try:
                    async with session.post("/v1/recommend", json=body) as answer:
                        text = await answer.read()
                except aiohttp.ClientError:
                    lost += 1
                    break
                if answer.status == 503:
                    refused += 1
                    await asyncio.sleep(int(answer.headers["retry-after"]))
                    continue
                seconds.append(time.perf_counter() - start)
                wrong += answer.status != 200 or not is_right(text, ask)
                break

    start = time.perf_counter()
    # Clients share the cores with the server: httpx takes several times the CPU time of aiohttp.
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=clients)) as session:
        await asyncio.gather(*(client() for _ in range(clients)))
    found = summary(seconds, time.perf_counter() - start)
    return {**found, "wrong": wrong, "lost": lost, "told to wait": refused}


def is_right(body: bytes, ask: Ask) -> bool:
    """Whether an answer is the right one to rounding: nearly equal items may swap ranks."""
    items = json.loads(body)["slates"][0]["items"]
    scores = np.array([item["score"] for item in items])
    if scores.shape != ask.scores.shape or np.abs(scores - ask.scores).max() > TOLERANCE:
        return False
    known = dict(zip(ask.titles, ask.scores, strict=True))
    last = ask.scores[-1] + TOLERANCE
    return all(abs(known.get(one["title"], last) - one["score"]) <= 2 * TOLERANCE for one in items)


def summary(seconds: list[float], whole: float) -> dict[str, float]:
    p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99]).round(1).tolist()
    return {
        "requests/s": round(len(seconds) / whole, 1),
        "p50 ms": p50,
        "p95 ms": p95,
        "p99 ms": p99,
    }


def resident(pid: int) -> int:
    """Memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise SystemExit("the server is gone")


if __name__ == "__main__":
    main()
