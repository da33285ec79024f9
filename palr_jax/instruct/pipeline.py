"""The grain pipeline: examples, packed into rows, in batches.

The unit of random access is a window: a fixed number of consecutive examples that are packed
together. Window w is a pure function of (seed, w). So each of n processes takes every n-th window,
the rows do not depend on n, and a run resumes at (window, row).

Shapes: R rows of a window, M label tokens of a row.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import grain
import numpy as np

from palr_jax.instruct.packing import Packing

# Enough examples for little padding, few enough to make in well under a second.
WINDOW = 1024

Made = TypeVar("Made")


class Maker(Protocol[Made]):
    """Makes the examples of the users that the ranker is tuned on, and packs them.

    Attributes:
        seed: random seed of the run.
    """

    @property
    def seed(self) -> int: ...

    def example(self, user: int, epoch: int) -> Made:
        """The example of a user in an epoch, a pure function of both and the seed."""

    def pack(
        self, examples: Sequence[Made], packing: Packing, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Packed rows: arrays by name; the first axis, R in the names, is rows."""


class _PackedWindows:
    """An unbounded sequence of windows, each as packed rows."""

    def __init__(self, maker: Maker[Any], users: np.ndarray, packing: Packing) -> None:
        self._maker, self._users, self._packing = maker, users, packing

    def __len__(self) -> int:
        return int(np.iinfo(np.int32).max)

    def __getitem__(self, window: int) -> dict[str, np.ndarray]:
        examples = window_examples(self._maker, self._users, int(window))
        rng = np.random.default_rng([self._maker.seed, int(window)])
        return self._maker.pack(examples, self._packing, rng)


class _SplitWindows(grain.experimental.FlatMapTransform):
    """Splits a window into its rows; a window has at most as many rows as examples."""

    max_fan_out = WINDOW

    def flat_map(self, element: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        rows = len(element["tokens_RT"])
        return [
            {name.replace("_R", "_B"): array[row] for name, array in element.items()}
            for row in range(rows)
        ]


def window_examples(maker: Maker[Made], users: np.ndarray, window: int) -> list[Made]:
    """The examples of a window."""
    return list(visit(maker, users, window * WINDOW, (window + 1) * WINDOW))


def whole_pass(maker: Maker[Made], users: np.ndarray, packing: Packing) -> dict[str, np.ndarray]:
    """The packed rows of one example per user, for validation."""
    examples = [maker.example(int(user), 0) for user in users]
    return maker.pack(examples, packing, np.random.default_rng(maker.seed))


def visit(maker: Maker[Made], users: np.ndarray, start: int, stop: int) -> Iterator[Made]:
    """Examples `start` to `stop` (exclusive); every epoch visits all users in a new order."""
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
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """An endless, checkpointable dataset of packed batches.

    Each element is a dict of int32 arrays: `tokens_BT`, `position_BT` (within the example),
    `segment_BT` (the example of each token, from 1; 0 is padding), `target_BM` (label tokens),
    `target_index_BM` (index of the token whose output predicts it) and `weight_BM` (1, or 0 at
    padding).

    Args:
        maker: makes the examples.
        users: the users that the ranker is tuned on.
        packing: the shapes of this process's batches.
        process: index of this process.
        processes: number of processes, which share the windows.
    """
    windows = grain.MapDataset.source(_PackedWindows(maker, users, packing))[process::processes]
    rows: grain.IterDataset[dict[str, np.ndarray]] = grain.experimental.FlatMapIterDataset(
        windows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)),
        _SplitWindows(),
    )
    return rows.batch(packing.rows)
