"""What every retriever does.

Letters: U users, I items, K candidates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from palr_jax.data.split import Split
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class TopK:
    """The best items of each user, best first.

    Attributes:
        item_UK: int32; -1 behind the last item of a user with fewer than K.
        score_UK: float32, the scores of these items; comparable within a user only, -inf behind
            the last.
    """

    item_UK: np.ndarray
    score_UK: np.ndarray


class Retriever(Protocol):
    """Scores the catalog for users it knows by their histories alone.

    A retriever is made as `MODELS[name](config, num_items, seed)`; `fit` or `load` makes it ready
    for the rest. Histories are items, oldest first, and may be empty.
    """

    def fit(self, split: Split, directory: Path) -> None:
        """Trains on `split.train` and leaves in `directory` all that `load` needs.

        Training that was stopped goes on from `directory`, to the result it would have had.

        Raises:
            UserError: training failed, or `directory` belongs to other settings or data.
        """

    def load(self, directory: Path) -> None:
        """Takes over what `fit` left in `directory`.

        Raises:
            UserError: there is no finished training, or it cannot be read.
        """

    def scores(self, histories: Ragged) -> jax.Array:
        """Scores of all items, seen or not: float32 [U, I], higher is better."""

    def recommend(self, histories: Ragged, k: int) -> TopK:
        """The `k` best items outside each history; of equal items the lower comes first.

        A user with fewer gets all of them.

        Raises:
            UserError: a history holds an item the catalog lacks.
        """

    def target_ranks(self, histories: Ragged, target_U: np.ndarray) -> np.ndarray:
        """Rank of each target among all items outside the history: float32 [U], from 1.

        It is one, plus the unseen items scored strictly higher, plus half of the ties.

        Raises:
            UserError: a history holds an item the catalog lacks.
        """
