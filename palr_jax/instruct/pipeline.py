"""The grain pipeline: examples, packed into rows, in batches.

The unit of random access is a window of a fixed number of successive examples, packed as a whole:
window w is a pure function of (seed, w). So processes share the work by taking every so manieth
window, any number of them makes the same rows, and a stopped run goes on at (window, row).

Shapes: B rows of a batch, R rows of a window, T tokens a row, M label tokens a row.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import grain
import numpy as np

from palr_jax.instruct.packing import Packing

# Enough examples to leave little padding, few enough to make in well under a second.
WINDOW = 1024


Made = TypeVar("Made")


class Maker(Protocol[Made]):
    """Makes the examples of the users that the ranker is tuned on, and packs them.

    Attributes:
        seed: of the run.
    """

    @property
    def seed(self) -> int: ...

    def example(self, user: int, epoch: int) -> Made:
        """The example of a user in an epoch, a pure function of both and the seed."""

    def pack(
        self, examples: Sequence[Made], packing: Packing, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Packed rows: arrays whose names have an R where the first axis is that of rows."""


class _Windows:
    """Window → packed rows, for ever."""

    def __init__(self, maker: Maker[Any], users: np.ndarray, packing: Packing) -> None:
        self._maker, self._users, self._packing = maker, users, packing

    def __len__(self) -> int:
        return int(np.iinfo(np.int32).max)

    def __getitem__(self, window: int) -> dict[str, np.ndarray]:
        examples = window_examples(self._maker, self._users, int(window))
        rng = np.random.default_rng([self._maker.seed, int(window)])
        return self._maker.pack(examples, self._packing, rng)


class _Rows(grain.experimental.FlatMapTransform):
    """The rows of a window, one by one; no window has more rows than examples."""

    max_fan_out = WINDOW

    def flat_map(self, element: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        rows = len(element["tokens_RT"])
        return [
            {name.replace("_R", "_B"): array[row] for name, array in element.items()}
            for row in range(rows)
        ]


def window_examples(maker: Maker[Made], users: np.ndarray, window: int) -> list[Made]:
    """The examples of a window, which are packed together."""
    return list(visit(maker, users, window * WINDOW, (window + 1) * WINDOW))


def whole_pass(maker: Maker[Any], users: np.ndarray, packing: Packing) -> dict[str, np.ndarray]:
    """The packed rows of one example of each user, for validation."""
    examples = [maker.example(int(user), 0) for user in users]
    return maker.pack(examples, packing, np.random.default_rng(maker.seed))


def visit(maker: Maker[Made], users: np.ndarray, start: int, stop: int) -> Iterator[Made]:
    """Examples number `start` to `stop`: every epoch visits all users in a new order."""
    for epoch in range(start // len(users), -(-stop // len(users))):
        order = np.random.default_rng([maker.seed, epoch]).permutation(users)
        first = epoch * len(users)
        for user in order[max(start - first, 0) : stop - first]:
            yield maker.example(int(user), epoch)


def batches(
    maker: Maker[Any],
    users: np.ndarray,
    packing: Packing,
    process: int = 0,
    processes: int = 1,
) -> grain.IterDataset:
    """An endless, checkpointable dataset of packed batches.

    Each element is a dict of int32 arrays: `tokens_BT`, `position_BT` (within the example),
    `segment_BT` (the example of each token, from 1; 0 is padding), `target_BM` (label tokens),
    `target_index_BM` (the place in the row whose output predicts it) and `weight_BM` (1, or 0
    for padding).

    Args:
        maker: makes the examples.
        users: the users that the ranker is tuned on.
        packing: the shapes of this process's batches.
        process: this one of `processes`, which share the rows among them.
        processes: how many there are.
    """
    windows = grain.MapDataset.source(_Windows(maker, users, packing))[process::processes]
    rows = grain.experimental.FlatMapIterDataset(
        windows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)), _Rows()
    )
    return rows.batch(packing.rows)
