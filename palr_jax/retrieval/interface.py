"""The interface that every retriever implements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from palr_jax.data.split import Split
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class TopK:
    """The top items of each user, best first.

    Attributes:
        item_UK: int32, padded with -1 for a user with fewer than K items.
        score_UK: float32, the scores of these items, padded with -inf; comparable only within a
            user.
    """

    item_UK: np.ndarray
    score_UK: np.ndarray


class Retriever(Protocol):
    """Scores the catalog for users, given only their histories.

    A retriever is made as `MODELS[name](config, num_items, seed)`. Call `fit` or `load` before the
    other methods. Histories are items, oldest first, and may be empty.
    """

    def fit(self, split: Split, directory: Path) -> None:
        """Trains on `split.train` and writes to `directory` all that `load` needs.

        Resumes an interrupted training from `directory`; the result is that of an uninterrupted
        one.

        Raises:
            UserError: training failed, or `directory` was made with other settings or data.
        """

    def load(self, directory: Path) -> None:
        """Loads what `fit` wrote to `directory`.

        Raises:
            UserError: training is not finished, or its files cannot be read.
        """

    def scores(self, histories: Ragged) -> jax.Array:
        """Scores of all items, seen or not: float32 [U, I], higher is better."""

    def recommend(self, histories: Ragged, k: int) -> TopK:
        """The `k` best items outside each history; ties are ordered by item id.

        A user with fewer than `k` gets all of them.

        Raises:
            UserError: a history holds an item the catalog lacks.
        """

    def target_ranks(self, histories: Ragged, target_U: np.ndarray) -> np.ndarray:
        """Rank of each target among all items outside the history: float32 [U], from 1.

        The rank is 1, plus the number of unseen items with a strictly higher score, plus half the
        number of ties.

        Raises:
            UserError: a history holds an item the catalog lacks.
        """
