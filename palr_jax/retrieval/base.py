"""The base of the retrievers: from scores of the catalog to recommendations and ranks."""

from abc import ABC, abstractmethod

import jax
import numpy as np

from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking
from palr_jax.retrieval.full_ranking import Scorer
from palr_jax.retrieval.interface import TopK


class ScoringRetriever(ABC):
    """The part of a `Retriever` that follows from its scores; `fit` and `load` are left."""

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items

    @abstractmethod
    def _scorer(self) -> Scorer:
        """How the fitted retriever computes its scores."""

    def scores(self, histories: Ragged) -> jax.Array:
        """See `Retriever.scores`."""
        return full_ranking.scores(self._scorer(), histories, self._num_items)

    def recommend(self, histories: Ragged, k: int) -> TopK:
        """See `Retriever.recommend`."""
        return full_ranking.recommend(self._scorer(), histories, k, self._num_items)

    def target_ranks(self, histories: Ragged, target_U: np.ndarray) -> np.ndarray:
        """See `Retriever.target_ranks`."""
        return full_ranking.ranks(self._scorer(), histories, target_U, self._num_items)
