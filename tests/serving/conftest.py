"""A server over the run of the tests, in a thread of this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from palr_jax import Recommender
from palr_jax.serving.server import uvicorn_config
from palr_jax.serving.service import Service, Settings

# The client closes an idle connection beyond these limits, even where another thread has just sent
# a request over it, which then fails with "Bad file descriptor". So no connection exceeds them.
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=None)


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    service: Service
    client: httpx.Client

    @property
    def recommender(self) -> Recommender:
        return self.service.recommender


@contextmanager
def serving(run: Path, settings: Settings) -> Iterator[Served]:
    service = Service(lambda: Recommender.load(run), settings)
    server = uvicorn.Server(uvicorn_config(service, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while service.state in ("loading", "compiling"):
            time.sleep(0.05)
        if service.failure is not None:
            raise service.failure
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60, limits=_LIMITS) as client:
            yield Served(url, service, client)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(world: Path) -> Iterator[Served]:
    with serving(world / "runs/tiny", Settings(max_batch=8, queue=64)) as one:
        yield one
