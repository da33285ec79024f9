"""The life of a served run: loading, compiling, answering, draining."""

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
    """Settings of a server.

    Attributes:
        max_batch: most prompts of a batch.
        wait_ms: how long an incomplete batch waits for further questions, in milliseconds.
        queue: most questions that may wait.
        cache: size of the LRU cache of answers.
        api_keys: a request must carry one of them; if empty, every request is answered.
        cors_origins: other origins whose pages may send requests.
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
    """The server is not ready yet, or is stopping."""


class StoppedError(Exception):
    """The server was stopped while it compiled."""


class Service:
    """Owns the thread in which JAX runs.

    Attributes:
        state: the current state.
        progress: share of the programs that are compiled, from 0 to 1.
        failure: the error that the service failed with.
    """

    def __init__(self, load: Callable[[], Recommender], settings: Settings) -> None:
        """Makes a service that has loaded nothing yet.

        Args:
            load: loads the recommender; called in the thread that runs JAX.
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
            NotReadyError: the run is not loaded yet.
        """
        if self._recommender is None:
            raise NotReadyError(f"the server is {self.state}: see /readyz")
        return self._recommender

    async def start(self) -> None:
        """Loads the run, compiles its programs and starts answering; sets `failure` on an error."""
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
            NotReadyError: the server does not answer now.
            BusyError: too many questions wait.
        """
        if self._batcher is None or self.state not in ("ready", "draining"):
            raise NotReadyError(f"the server is {self.state}: see /readyz")
        return await self._batcher.ask(questions)

    async def stop(self) -> None:
        """Answers the waiting questions, then ends the thread."""
        if self.state != "failed":
            self.state = "draining"
        if self._batcher is not None and self._running is not None:
            self._batcher.close()
            await self._running
        self._executor.shutdown(wait=False, cancel_futures=True)

    def metrics_text(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        compiled = self._compilations.count
        self.metrics.programs.set(compiled)
        self.metrics.late_programs.set(self.late_programs)
        self.metrics.ready.set(self.state == "ready")
        return self.metrics.text()

    @property
    def late_programs(self) -> int:
        """The number of programs that were compiled after the server was ready."""
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
    """The message of a failure: only the text for a `UserError`, otherwise also the type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
