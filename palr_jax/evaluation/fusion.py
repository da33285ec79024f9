"""Retriever, ranker and popularity together: two weights, tuned on validation users.

Shapes: U users, C candidates, K items of a slate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.evaluation.metrics import SLATE, ndcg, slate_rank

# 0 leaves a part out, so what adds nothing on validation users can do no harm there.
RANKER_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
POPULARITY_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Weights:
    """What counts how much beside the retriever's 1.

    Attributes:
        ranker: of log P(candidate | prompt).
        popularity: of the log of 1 + an item's training interactions.
    """

    ranker: float = 0.0
    popularity: float = 0.0


@dataclass(frozen=True)
class Scores:
    """What is known of the candidates of some users, -inf or anything where there is none.

    Attributes:
        candidates_UC: item indices, -1 where there is none.
        retriever_UC: the retriever's scores, -inf where there is no candidate.
        ranker_UC: the ranker's log-probabilities.
        popularity_UC: log(1 + training interactions).
    """

    candidates_UC: np.ndarray
    retriever_UC: np.ndarray
    ranker_UC: np.ndarray
    popularity_UC: np.ndarray

    def fused(self, weights: Weights) -> np.ndarray:
        """The score of each candidate by all of them, float [U, C]."""
        fused_UC = fuse(self.retriever_UC, self.ranker_UC, weights.ranker)
        return fused_UC + weights.popularity * self.popularity_UC

    def slates(self, weights: Weights) -> np.ndarray:
        """The best candidates of each user, [U, K]."""
        return slates(self.candidates_UC, self.fused(weights))


def fuse(retriever_UC: np.ndarray, ranker_UC: np.ndarray, weight: float) -> np.ndarray:
    """Score of each candidate: log-softmax of the retriever's scores + weight x log-probability.

    Args:
        retriever_UC: the retriever's scores, -inf where there is no candidate.
        ranker_UC: the ranker's log-probabilities over the candidates.
        weight: of the ranker, at least 0.
    """
    shifted_UC = retriever_UC - retriever_UC.max(axis=1, keepdims=True)
    log_UC = shifted_UC - np.log(np.exp(shifted_UC).sum(axis=1, keepdims=True))
    # -inf times a weight of 0 is NaN, and a missing candidate is -inf on both sides.
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
    """The weights with the best NDCG@10 on these users; the smallest of equals.

    Args:
        scores: of the users' candidates.
        target_U: the item to find for each.
        ranker_weights: to choose from; (0,) leaves the ranker out.
        popularity_weights: to choose from.
    """
    choices = [
        Weights(ranker, popularity)
        for ranker in ranker_weights
        for popularity in popularity_weights
    ]

    def quality(weights: Weights) -> float:
        return float(ndcg(slate_rank(scores.slates(weights), target_U), SLATE).mean())

    return max(choices, key=quality)
