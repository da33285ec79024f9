import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from palr_jax.errors import UserError
from palr_jax.serving.batcher import Batcher, BusyError, Outcome
from palr_jax.serving.metrics import Metrics
from palr_jax.serving.questions import Answer, Question


class Slow:
    """Answers with the first item of a history, once the gate is open; notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, questions: Sequence[Question]) -> Sequence[Outcome]:
        self.batches.append([question.history[0] for question in questions])
        self.entered.set()
        self.gate.wait(10)
        if questions[0].history[0] < 0:
            raise RuntimeError("broken")
        return [answer(question.history[0]) for question in questions]


def answer(item: int) -> Answer:
    zero = np.zeros(1, np.float32)
    return Answer(np.array([item]), zero, zero, None, "", "")


def asked(*items: int) -> list[Question]:
    return [Question((item,)) for item in items]


def run(
    work: Callable[[Batcher, Slow, Metrics], Awaitable[None]], room: int = 8, kept: int = 8
) -> Slow:
    """Runs a test with a batcher that holds four prompts a batch."""
    slow, metrics = Slow(), Metrics()

    async def main(executor: ThreadPoolExecutor) -> None:
        batcher = Batcher(slow, executor, metrics, 4, 0.05, room, kept)
        running = asyncio.create_task(batcher.run())
        await work(batcher, slow, metrics)
        slow.gate.set()
        batcher.close()
        await asyncio.wait_for(running, 10)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(main(executor))
    return slow


async def entered(slow: Slow) -> None:
    await asyncio.to_thread(slow.entered.wait, 10)


def value(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(name)
    assert found is not None
    return found


def test_what_arrives_together_shares_a_batch() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        found = await asyncio.gather(*(batcher.ask(asked(n)) for n in range(6)))
        assert [one[0].items_C[0] for one in found] == list(range(6))  # type: ignore[union-attr]

    assert run(work).batches == [[0, 1, 2, 3], [4, 5]]


def test_an_explained_question_counts_by_its_prompts() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        await batcher.ask([Question((1, 2), explain=True), *asked(3)])

    assert run(work).batches == [[1], [3]]


def test_a_full_queue_refuses_the_whole_request() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        slow.gate.clear()
        first = asyncio.create_task(batcher.ask(asked(1, 2, 3, 4)))
        await entered(slow)
        second = asyncio.create_task(batcher.ask(asked(5, 6, 7)))
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as caught:
            await batcher.ask(asked(8, 9))
        assert caught.value.seconds >= 1
        assert value(metrics, "palr_queue_length") == 3
        slow.gate.set()
        assert len(await first) + len(await second) == 7
        assert len(await batcher.ask(asked(8, 9))) == 2

    run(work, room=4)


def test_a_closed_client_leaves_the_queue() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        slow.gate.clear()
        first = asyncio.create_task(batcher.ask(asked(1)))
        await entered(slow)
        gone, stays = (asyncio.create_task(batcher.ask(asked(n))) for n in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        slow.gate.set()
        await first
        await stays
        assert value(metrics, "palr_dropped_total") == 1
        assert value(metrics, "palr_queue_length") == 0

    assert run(work).batches == [[1], [3]]


def test_an_answer_is_computed_once_and_the_oldest_is_forgotten() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        for item in (1, 2, 1, 3, 1, 2):
            await batcher.ask(asked(item))

    # 2 was used longest ago when 3 came.
    assert run(work, kept=2).batches == [[1], [2], [3], [2]]


def test_a_reason_is_not_kept() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        batcher._answer = lambda questions: [UserError("no") for _ in questions]
        assert isinstance((await batcher.ask(asked(1)))[0], UserError)
        batcher._answer = slow
        assert isinstance((await batcher.ask(asked(1)))[0], Answer)

    run(work)


def test_a_failure_reaches_its_request_alone() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.ask(asked(-1))
        assert len(await batcher.ask(asked(1))) == 1

    run(work)


def test_closing_answers_what_waits() -> None:
    async def work(batcher: Batcher, slow: Slow, metrics: Metrics) -> None:
        slow.gate.clear()
        tasks = [asyncio.create_task(batcher.ask(asked(n))) for n in range(6)]
        await entered(slow)
        batcher.close()
        slow.gate.set()
        assert len(await asyncio.gather(*tasks)) == 6

    run(work)
