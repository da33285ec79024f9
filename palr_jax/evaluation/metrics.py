"""Metrics of a ranking with one relevant item per user, as functions of the rank of that item.

Ranks count from 1. They may be half-integers, because a tied item counts as half above the target,
and infinite, because a slate may lack the item.
"""

import numpy as np

SLATE = 10
"""Items of a slate; `summary` computes MRR@10."""


def hit_rate(rank_U: np.ndarray, k: int) -> np.ndarray:
    """HR@k per user, float64 [U]: 1 where the item is among the first k. At k = 50 this is the
    recall of 50 candidates.
    """
    return (np.asarray(rank_U) <= k).astype(np.float64)


def ndcg(rank_U: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k per user, float64 [U]: 1 / log2(1 + rank) among the first k, else 0."""
    return hit_rate(rank_U, k) / np.log2(1 + np.asarray(rank_U, np.float64))


def mrr(rank_U: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank per user, float64 [U]: 1 / rank among the first k, else 0.

    It is cut at k so that a retriever, which ranks the catalog, and a ranker, which makes a slate
    of k items, are comparable.
    """
    return hit_rate(rank_U, k) / np.asarray(rank_U, np.float64)


def slate_rank(slate_UK: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    """Rank of the target in each slate, float64 [U], from 1; infinite if the slate lacks it."""
    hit_UK = np.asarray(slate_UK) == np.asarray(target_U)[:, None]
    return np.where(hit_UK.any(1), hit_UK.argmax(1) + 1.0, np.inf)


def summary(rank_U: np.ndarray) -> dict[str, float]:
    """Means over users of HR@1, HR@5, HR@10, NDCG@5, NDCG@10 and MRR.

    Raises:
        ValueError: `rank_U` is empty.
    """
    if not len(rank_U):
        raise ValueError("no users to average over")
    per_user = {f"HR@{k}": hit_rate(rank_U, k) for k in (1, 5, 10)}
    per_user |= {f"NDCG@{k}": ndcg(rank_U, k) for k in (5, 10)}
    per_user["MRR"] = mrr(rank_U, SLATE)
    return {name: float(metric_U.mean()) for name, metric_U in per_user.items()}
