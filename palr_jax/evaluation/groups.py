"""Where a ranker lifts its retriever: users in groups, and where the ranker put their items.

Groups are ranges of a whole number that every user has: the length of the history, the training
interactions of the test item, the rank of the test item among the candidates.

Shapes: V users of one group, F users whose test item is a candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.evaluation.metrics import SLATE, ndcg
from palr_jax.evaluation.significance import paired_bootstrap
from palr_jax.json_types import JsonObject

# Fixed, so that runs on different data have the same groups.
HISTORY_ENDS = (5, 10, 20, 50, 100)
POPULARITY_ENDS = (0, 5, 20)
RANK_ENDS = (1, 3, 5, 10, 20)
FEWEST = 10
"""A group of fewer users gets no interval: its bootstrap would be far too narrow."""


@dataclass(frozen=True)
class Range:
    """The whole numbers from `low` to `high`, both included; without an end if `high` is None."""

    low: int
    high: int | None

    @property
    def label(self) -> str:
        """As "7", "1–5" or ">20"."""
        if self.high is None:
            return f">{self.low - 1}"
        return f"{self.low}" if self.low == self.high else f"{self.low}–{self.high}"

    def holds(self, values_U: np.ndarray) -> np.ndarray:
        """Which values lie in the range, bool [U]."""
        return (values_U >= self.low) & (values_U <= (np.inf if self.high is None else self.high))

    def to_dict(self) -> JsonObject:
        """The range as in results.json."""
        return {"label": self.label, "from": self.low, "to": self.high}


def ranges(first: int, ends: Sequence[int]) -> list[Range]:
    """Ranges that follow each other: from `first` to the first end, …, above the last end."""
    lows = [first, *(end + 1 for end in ends)]
    return [Range(low, high) for low, high in zip(lows, [*ends, None], strict=True)]


def rank_ranges(num_candidates: int) -> list[Range]:
    """Ranges of a rank among the candidates; the last, without an end, is not a candidate."""
    return ranges(1, [*(end for end in RANK_ENDS if end < num_candidates), num_candidates])


def position(candidates_UC: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    """The position of each user's target in the retriever's order, int [U], from 1.

    A target that is not a candidate gets C + 1.
    """
    is_target_UC = candidates_UC == target_U[:, None]
    missing = candidates_UC.shape[1] + 1
    return np.where(is_target_UC.any(axis=1), is_target_UC.argmax(axis=1) + 1, missing)


def lifts(
    values_U: np.ndarray,
    groups: Sequence[Range],
    baseline: tuple[str, np.ndarray],
    models: Mapping[str, np.ndarray],
    seed: int,
    samples: int,
) -> list[JsonObject]:
    """NDCG@10 of a baseline in each group of users, and what models add to it.

    Args:
        values_U: what groups the users.
        groups: the groups; those without users are left out of the result.
        baseline: its name, and its rank of every user's test item, [U].
        models: name → its rank of every user's test item, [U].
        seed: of the bootstrap.
        samples: resamples of the bootstrap.

    Returns:
        A dict for each group: `label`, `from`, `to`, `users`, the baseline's NDCG@10 under its
        name, and `lift`: model → `mean` and `ci95`, the 95% paired-bootstrap interval, None in a
        group of fewer than `FEWEST` users.
    """
    name, baseline_U = baseline
    baseline_U = ndcg(baseline_U, SLATE)
    rows = []
    for group in groups:
        inside_U = group.holds(values_U)
        count = int(inside_U.sum())
        if not count:
            continue
        theirs_V = baseline_U[inside_U]
        lift = {}
        for model, rank_U in models.items():
            mine_V = ndcg(rank_U[inside_U], SLATE)
            bounds = paired_bootstrap(mine_V, theirs_V, seed, samples) if count >= FEWEST else None
            lift[model] = {
                "mean": _rounded((mine_V - theirs_V).mean()),
                "ci95": bounds and [*map(_rounded, bounds)],
            }
        mean = _rounded(theirs_V.mean())
        rows.append({**group.to_dict(), "users": count, name: mean, "lift": lift})
    return rows


def moves(before_U: np.ndarray, after_U: np.ndarray, num_candidates: int) -> JsonObject:
    """Where the retriever had the targets, and where the ranker put them.

    Args:
        before_U: position of the target in the retriever's order, above `num_candidates` where it
            is not a candidate.
        after_U: rank of the target by the ranker, among the same candidates.
        num_candidates: C.

    Returns:
        `counts`, the users in each pair of ranges (a row for each range of the retriever, a column
        for each of the ranker), and how many targets were `raised`, `kept` and `lowered`.
    """
    inside = rank_ranges(num_candidates)[:-1]
    found_U = before_U <= num_candidates
    before_F, after_F = before_U[found_U], after_U[found_U]
    return {
        "counts": [
            [int((row.holds(before_F) & column.holds(after_F)).sum()) for column in inside]
            for row in inside
        ],
        "raised": int((after_F < before_F).sum()),
        "kept": int((after_F == before_F).sum()),
        "lowered": int((after_F > before_F).sum()),
    }


def _rounded(value: float) -> float:
    return round(float(value), 6)
