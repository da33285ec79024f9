"""`palr serve`: the application under uvicorn."""

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import uvicorn

from palr_jax.errors import UserError
from palr_jax.io.files import reading
from palr_jax.io.progress import say
from palr_jax.recommender import Recommender
from palr_jax.serving.app import create_app
from palr_jax.serving.connections import timed
from palr_jax.serving.service import Service, Settings

# Time for requests in flight to finish after SIGTERM.
_DRAIN_SECONDS = 30


def serve(load: Callable[[], Recommender], settings: Settings, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the requests in flight.

    Raises:
        UserError: the run cannot be loaded, its weights are damaged, or the port is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    service = Service(load, settings)

    def started() -> None:
        if service.failure is not None:
            server.should_exit = True
        elif service.state == "ready":
            say(f"ready: http://{host}:{port}/")

    server = uvicorn.Server(uvicorn_config(service, host, port, started))
    # uvicorn raises the signal again after a clean shutdown, which must not count as a failure.
    before = {
        sign: signal.signal(sign, lambda *_: None) for sign in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        server.run()
    except SystemExit:
        raise UserError(
            f"{host}:{port} cannot be listened on (the line above says why): choose another "
            "--host or --port"
        ) from None
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    if service.failure is not None:
        raise service.failure
    if not server.started:
        raise UserError("the server did not start: the lines above say why")


def uvicorn_config(
    service: Service, host: str, port: int, started: Callable[[], None] = lambda: None
) -> uvicorn.Config:
    """How uvicorn serves a run; `started` is called when the service is ready or has failed."""
    return uvicorn.Config(
        create_app(service, started),
        host=host,
        port=port,
        http=timed(service.settings.limits.header_seconds),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys in a file, one per line; lines that begin with # are comments.

    Raises:
        UserError: the file is missing or contains no key.
    """
    with reading(path, "name a file with one key a line"):
        lines = path.read_text(encoding="utf-8").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UserError(f"{path} holds no key: write one a line")
    return keys
