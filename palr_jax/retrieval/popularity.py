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
from palr_jax.retrieval.base import ScoringRetriever
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer

_FILE = "popularity.npz"


class Popularity(ScoringRetriever):
    """The baseline of all other retrievers.

    Scores are counts of training interactions, the same for every user; ties are common.
    """

    def __init__(self, config: RetrieverConfig, num_items: int, seed: int) -> None:
        super().__init__(num_items)
        self._count_I = np.zeros(num_items, np.float32)

    def fit(self, split: Split, directory: Path) -> None:
        """Counts the training interactions of each item."""
        count_I = np.bincount(split.train.values_N, minlength=self._num_items)
        write_arrays(directory / _FILE, count_I=count_I.astype(np.float32))
        self._count_I = count_I.astype(np.float32)

    def load(self, directory: Path) -> None:
        """Reads the counts."""
        count_I = read_arrays(directory / _FILE)["count_I"]
        if len(count_I) != self._num_items:
            raise UserError(
                f"{directory / _FILE} counts {len(count_I)} items, but the catalog has "
                f"{self._num_items}: delete that folder and run again"
            )
        self._count_I = count_I

    def _scorer(self) -> Scorer:
        return Scorer(lambda part: np.zeros(len(part)), self._count_I, _same_for_all)


def _same_for_all(query_B: jax.Array, count_C: jax.Array) -> jax.Array:
    return jnp.broadcast_to(count_C, (len(query_B), len(count_C)))
