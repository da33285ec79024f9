"""Popularity: every user gets the items with the most interactions.

Shapes: C items of a chunk.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.io.files import read_arrays, write_arrays
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer
from palr_jax.retrieval.interface import TopK

_FILE = "popularity.npz"


class Popularity:
    """The baseline of all other retrievers; scores are counts of training interactions."""

    def __init__(self, config: RetrieverConfig, num_items: int, seed: int) -> None:
        self._num_items = num_items
        self._count_I = np.zeros(num_items, np.float32)

    def fit(self, split: Split, directory: Path) -> None:
        """Counts the training interactions of each item."""
        count_I = np.bincount(split.train.values_N, minlength=self._num_items)
        write_arrays(directory / _FILE, count_I=count_I.astype(np.float32))
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Reads the counts."""
        count_I = read_arrays(directory / _FILE)["count_I"]
        if len(count_I) != self._num_items:
            raise UserError(
                f"{directory / _FILE} counts {len(count_I)} items, but the catalog has "
                f"{self._num_items}: delete that folder and run again"
            )
        self._count_I = count_I

    def scores(self, histories: Ragged) -> jax.Array:
        """The counts, the same for every user."""
        return full_ranking.scores(self._scorer(), histories, self._num_items)

    def recommend(self, histories: Ragged, k: int) -> TopK:
        """The most popular unseen items."""
        return full_ranking.recommend(self._scorer(), histories, k, self._num_items)

    def target_ranks(self, histories: Ragged, target_U: np.ndarray) -> np.ndarray:
        """Ranks by count; ties are common and count half."""
        return full_ranking.ranks(self._scorer(), histories, target_U, self._num_items)

    def _scorer(self) -> Scorer:
        return Scorer(lambda part: np.zeros(len(part)), self._count_I, _same_for_all)


def _same_for_all(query_B: jax.Array, count_C: jax.Array) -> jax.Array:
    return jnp.broadcast_to(count_C, (len(query_B), len(count_C)))
