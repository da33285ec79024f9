"""A run that is being loaded, compiled, served and drained."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from palr_jax.errors import UserError
from palr_jax.recommender import Recommender
from palr_jax.serving.batcher import Batcher, Outcome
from palr_jax.serving.compiling import Compilations
from palr_jax.serving.engine import Engine
from palr_jax.serving.limits import Limits
from palr_jax.serving.metrics import Metrics
from palr_jax.serving.questions import Question

State = Literal["loading", "compiling", "ready", "draining", "failed"]

_log = logging.getLogger("palr")


@dataclass(frozen=True)
class Settings:
    """How a server works.

    Attributes:
        max_batch: prompts of a batch.
        wait_ms: for which a batch waits to be filled.
        queue: questions that may wait.
        cache: answers that are kept.
        api_keys: of which a request has to bring one; any request is answered without.
        cors_origins: pages of other origins that may ask.
        limits: of a request.
    """

    max_batch: int = 32
    wait_ms: float = 3.0
    queue: int = 256
    cache: int = 4096
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


class NotReadyError(Exception):
    """The server is not ready yet, or not any more."""


class StoppedError(Exception):
    """The server was told to end while it compiled."""


class Service:
    """Owns the thread in which JAX runs.

    Attributes:
        state: where it stands.
        progress: of the compiling, from 0 to 1.
        failure: why it failed.
    """

    def __init__(self, load: Callable[[], Recommender], settings: Settings) -> None:
        """Loads nothing yet.

        Args:
            load: makes the recommender, in the thread of JAX.
            settings: of the server.
        """
        self.settings, self.metrics = settings, Metrics()
        self.state: State = "loading"
        self.progress = 0.0
        self.failure: BaseException | None = None
        self._load = load
        self._compilations = Compilations()
        self._before = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="palr-jax")
        self._recommender: Recommender | None = None
        self._batcher: Batcher | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def recommender(self) -> Recommender:
        """The run.

        Raises:
            NotReadyError: it is not loaded yet.
        """
        if self._recommender is None:
            raise NotReadyError(f"the server is {self.state}: see /readyz")
        return self._recommender

    async def start(self) -> None:
        """Loads, compiles, and then answers; leaves `failure` if that is not possible."""
        loop = asyncio.get_running_loop()
        try:
            engine = await loop.run_in_executor(self._executor, self._prepared)
        except StoppedError:
            return
        except Exception as error:
            self.state, self.failure = "failed", error
            return
        settings = self.settings
        self._batcher = Batcher(
            engine.answer, self._executor, self.metrics, settings.max_batch,
            settings.wait_ms / 1000, settings.queue, settings.cache,
        )  # fmt: skip
        self._running = asyncio.create_task(self._batcher.run())
        self._before = self._compilations.count
        self.state = "ready"
        _log.info("ready: %d programs are compiled", self._before)

    async def ask(self, questions: Sequence[Question]) -> list[Outcome]:
        """The answers, in order.

        Raises:
            NotReadyError: nothing is answered now.
            BusyError: too many wait already.
        """
        if self._batcher is None or self.state not in ("ready", "draining"):
            raise NotReadyError(f"the server is {self.state}: see /readyz")
        return await self._batcher.ask(questions)

    async def stop(self) -> None:
        """Finishes what waits, then ends the thread."""
        if self.state != "failed":
            self.state = "draining"
        if self._batcher is not None and self._running is not None:
            self._batcher.close()
            await self._running
        self._executor.shutdown(wait=False, cancel_futures=True)

    def metrics_text(self) -> bytes:
        """For Prometheus."""
        compiled = self._compilations.count
        self.metrics.programs.set(compiled)
        self.metrics.late_programs.set(self.late_programs)
        self.metrics.ready.set(self.state == "ready")
        return self.metrics.text()

    @property
    def late_programs(self) -> int:
        """Programs that were compiled after the server was ready."""
        return self._compilations.count - self._before if self.state == "ready" else 0

    def _prepared(self) -> Engine:
        recommender = self._load()
        engine = Engine(recommender, self.settings.limits, self.settings.max_batch)
        if self.state == "draining":
            raise StoppedError
        self._recommender, self.state = recommender, "compiling"

        def advance(done: int, total: int) -> None:
            if self.state == "draining":
                raise StoppedError
            self.progress = done / total

        engine.warm_up(advance)
        return engine


def reason_of(error: BaseException) -> str:
    """What is said of a failure: a user's mistake in its own words."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
