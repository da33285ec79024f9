"""Puts questions that arrive within a few milliseconds into one batch.

Everything here runs in the event loop, except the computation of answers: it has its own thread.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from palr_jax.errors import UserError
from palr_jax.serving.metrics import Metrics
from palr_jax.serving.questions import Answer, Question

Outcome = Answer | UserError


class BusyError(Exception):
    """The queue is full.

    Attributes:
        seconds: after which to ask again.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full: ask again in {seconds} s")
        self.seconds = seconds


class Batcher:
    """A bounded queue in front of a function that answers questions in batches.

    Answers are kept in an LRU cache, so that equal questions are computed once.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Outcome]],
        executor: Executor,
        metrics: Metrics,
        most_rows: int,
        seconds: float,
        room: int,
        kept: int,
    ) -> None:
        """Makes an empty queue.

        Args:
            answer: runs in the executor, one call at a time.
            executor: of one thread.
            metrics: record batches, the queue and the cache.
            most_rows: most prompts of a batch.
            seconds: how long an incomplete batch waits for further questions.
            room: most questions that may wait.
            kept: size of the cache of answers.
        """
        self._answer, self._executor, self._metrics = answer, executor, metrics
        self._most_rows, self._seconds, self._room, self._kept = most_rows, seconds, room, kept
        self._waiting: dict[asyncio.Future[Outcome], Question] = {}
        self._answers: OrderedDict[Question, Answer] = OrderedDict()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False
        self._pace = 0.0  # seconds per question, exponentially averaged

    async def ask(self, questions: Sequence[Question]) -> list[Outcome]:
        """The answers, in order. If the caller is cancelled, its questions leave the queue.

        Raises:
            BusyError: the queue has no room for all of them.
        """
        found = [self._recall(question) for question in questions]
        missing = [n for n, answer in enumerate(found) if answer is None]
        if len(self._waiting) + len(missing) > self._room:
            raise BusyError(self._seconds_until_room())
        loop = asyncio.get_running_loop()
        futures: dict[int, asyncio.Future[Outcome]] = {n: loop.create_future() for n in missing}
        for number, future in futures.items():
            self._waiting[future] = questions[number]
        self._update()
        try:
            outcomes = await asyncio.gather(*futures.values())
        finally:
            for future in futures.values():
                if self._waiting.pop(future, None) is not None:
                    self._metrics.dropped.inc()
            self._update()
        late = dict(zip(missing, outcomes, strict=True))
        return [answer or late[number] for number, answer in enumerate(found)]

    async def run(self) -> None:
        """Answers until `close` is called and the queue is empty."""
        while True:
            await self._arrived.wait()
            if not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                continue
            await self._fill()
            await self._answer_some()

    def close(self) -> None:
        """Makes `run` return once the queue is empty."""
        self._closing = True
        self._arrived.set()

    async def _fill(self) -> None:
        """Waits briefly for further questions, unless the batch is full."""
        if self._closing or self._full.is_set():
            return
        try:
            await asyncio.wait_for(self._full.wait(), self._seconds)
        except TimeoutError:
            return

    async def _answer_some(self) -> None:
        batch = self._taken()
        if not batch:
            return
        start = time.monotonic()
        self._metrics.batch_size.observe(len(batch))
        loop = asyncio.get_running_loop()
        try:
            outcomes = await loop.run_in_executor(
                self._executor, self._answer, [question for _, question in batch]
            )
        except Exception as error:  # passed to the clients of this batch; the next may succeed
            for future, _ in batch:
                if not future.done():
                    future.set_exception(error)
            return
        seconds = (time.monotonic() - start) / len(batch)
        self._pace = 0.9 * self._pace + 0.1 * seconds if self._pace else seconds
        for (future, question), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Answer):
                self._keep(question, outcome)
            if not future.done():
                future.set_result(outcome)

    def _taken(self) -> list[tuple[asyncio.Future[Outcome], Question]]:
        """Removes the oldest questions from the queue, as many as fit into a batch."""
        batch: list[tuple[asyncio.Future[Outcome], Question]] = []
        rows = 0
        for future, question in list(self._waiting.items()):
            rows += _rows(question)
            if batch and rows > self._most_rows:
                break
            del self._waiting[future]
            batch.append((future, question))
        self._update()
        return batch

    def _update(self) -> None:
        """Updates the events and the metric from the queue."""
        self._metrics.queue.set(len(self._waiting))
        if self._waiting:
            self._arrived.set()
        if sum(map(_rows, self._waiting.values())) >= self._most_rows:
            self._full.set()
        else:
            self._full.clear()

    def _recall(self, question: Question) -> Answer | None:
        answer = self._answers.get(question)
        if answer is None:
            self._metrics.misses.inc()
            return None
        self._answers.move_to_end(question)
        self._metrics.hits.inc()
        return answer

    def _keep(self, question: Question, answer: Answer) -> None:
        self._answers[question] = answer
        while len(self._answers) > self._kept:
            self._answers.popitem(last=False)

    def _seconds_until_room(self) -> int:
        return max(1, math.ceil(self._pace * len(self._waiting)))


def _rows(question: Question) -> int:
    """An upper bound of the prompts of a question: prompts may hold fewer items than histories."""
    return len(question.history) + 2 if question.explain else 1
