"""Retriever and ranker together: one weight, tuned on validation users.

Shapes: U users, C candidates, K items of a slate.
"""

import numpy as np

from palr_jax.evaluation.metrics import SLATE, ndcg, slate_rank

# 0 leaves the retriever alone, so a ranker that adds nothing cannot do harm on validation.
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


def fuse(retriever_UC: np.ndarray, ranker_UC: np.ndarray, weight: float) -> np.ndarray:
    """Score of each candidate: log-softmax of the retriever's scores + weight x log-probability.

    Args:
        retriever_UC: the retriever's scores, -inf where there is no candidate.
        ranker_UC: the ranker's log-probabilities over the candidates.
        weight: of the ranker, at least 0.
    """
    shifted_UC = retriever_UC - retriever_UC.max(axis=1, keepdims=True)
    log_UC = shifted_UC - np.log(np.exp(shifted_UC).sum(axis=1, keepdims=True))
    # -inf times a weight of 0 is not a number, and a missing candidate is -inf on both sides.
    return log_UC + weight * np.where(np.isfinite(ranker_UC), ranker_UC, -1e9)


def slates(candidates_UC: np.ndarray, score_UC: np.ndarray, k: int = SLATE) -> np.ndarray:
    """The k best candidates in order, [U, K]; ties go to the earlier candidate."""
    order_UK = np.argsort(-score_UC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates_UC, order_UK, axis=1)


def tune_weight(
    candidates_UC: np.ndarray, retriever_UC: np.ndarray, ranker_UC: np.ndarray, target_U: np.ndarray
) -> float:
    """The weight with the best NDCG@10 on these users; the smallest of equals."""

    def quality(weight: float) -> float:
        slate_UK = slates(candidates_UC, fuse(retriever_UC, ranker_UC, weight))
        return float(ndcg(slate_rank(slate_UK, target_U), SLATE).mean())

    return max(WEIGHTS, key=quality)
