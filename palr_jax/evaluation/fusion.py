"""Fusion of retriever, ranker and popularity scores: two weights, tuned on validation users."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.evaluation.metrics import SLATE, ndcg, slate_rank

# 0 disables a part, so a part that does not help on validation users gets no weight.
RANKER_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
POPULARITY_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Weights:
    """Weights of the scores; the retriever's is 1.

    Attributes:
        ranker: weight of log P(candidate | prompt).
        popularity: weight of log(1 + an item's training interactions).
    """

    ranker: float = 0.0
    popularity: float = 0.0


@dataclass(frozen=True)
class Scores:
    """The scores of users' candidates.

    Attributes:
        candidates_UC: item indices, padded with -1.
        retriever_UC: the retriever's scores, padded with -inf.
        ranker_UC: the ranker's log-probabilities; padding is undefined.
        popularity_UC: log(1 + training interactions); padding is undefined.
    """

    candidates_UC: np.ndarray
    retriever_UC: np.ndarray
    ranker_UC: np.ndarray
    popularity_UC: np.ndarray

    def fused(self, weights: Weights) -> np.ndarray:
        """The weighted sum of the scores of each candidate, float [U, C]."""
        fused_UC = fuse(self.retriever_UC, self.ranker_UC, weights.ranker)
        return fused_UC + weights.popularity * self.popularity_UC

    def slates(self, weights: Weights) -> np.ndarray:
        """The slate of each user, [U, K]."""
        return slates(self.candidates_UC, self.fused(weights))


def fuse(retriever_UC: np.ndarray, ranker_UC: np.ndarray, weight: float) -> np.ndarray:
    """Score of each candidate: log-softmax of the retriever's scores + weight x log-probability.

    Args:
        retriever_UC: the retriever's scores, padded with -inf.
        ranker_UC: the ranker's log-probabilities over the candidates.
        weight: weight of the ranker, at least 0.
    """
    shifted_UC = retriever_UC - retriever_UC.max(axis=1, keepdims=True)
    log_UC = shifted_UC - np.log(np.exp(shifted_UC).sum(axis=1, keepdims=True))
    # -inf times a weight of 0 is NaN, and padding is -inf in both arrays.
    return log_UC + weight * np.where(np.isfinite(ranker_UC), ranker_UC, -1e9)


def slates(candidates_UC: np.ndarray, score_UC: np.ndarray, k: int = SLATE) -> np.ndarray:
    """The k best candidates in order, [U, K]; ties go to the earlier candidate."""
    order_UK = np.argsort(-score_UC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates_UC, order_UK, axis=1)


def log_popularity(items_UC: np.ndarray, train_N: np.ndarray, num_items: int) -> np.ndarray:
    """log(1 + training interactions) of each candidate, [U, C]; 0 for new items and for -1."""
    count_I = np.bincount(train_N, minlength=num_items)
    is_known_UC = (items_UC >= 0) & (items_UC < num_items)
    return np.log1p(np.where(is_known_UC, count_I[np.where(is_known_UC, items_UC, 0)], 0))


def tune(
    scores: Scores,
    target_U: np.ndarray,
    ranker_weights: Sequence[float] = RANKER_WEIGHTS,
    popularity_weights: Sequence[float] = POPULARITY_WEIGHTS,
) -> Weights:
    """The weights with the best NDCG@10 on these users; ties go to the smallest weights.

    Args:
        scores: the scores of the users' candidates.
        target_U: the target item of each user.
        ranker_weights: the grid of ranker weights; (0,) disables the ranker.
        popularity_weights: the grid of popularity weights.
    """
    choices = [
        Weights(ranker, popularity)
        for ranker in ranker_weights
        for popularity in popularity_weights
    ]

    def quality(weights: Weights) -> float:
        return float(ndcg(slate_rank(scores.slates(weights), target_U), SLATE).mean())

    return max(choices, key=quality)
