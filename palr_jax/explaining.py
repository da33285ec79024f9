"""Why items are recommended: what their probabilities lose without a part of the prompt.

Shapes: U users, C candidates, H history items in a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.ragged import Ragged
from palr_jax.ranker import Ranker


@dataclass(frozen=True)
class Lifts:
    """What every part of a user's prompt adds to log P(candidate | prompt).

    Attributes:
        item_H: int32, the history items in the prompt, oldest first.
        lift_HC: log P with the whole prompt less log P without the item.
        profile_C: the same for the profile sentence; 0 if there is none.
    """

    item_H: np.ndarray
    lift_HC: np.ndarray
    profile_C: np.ndarray


def lifts(
    ranker: Ranker, histories: Ragged, profiles: Sequence[str], candidates_UC: np.ndarray
) -> list[Lifts]:
    """Scores every user's prompt once more without each of its history items and its profile.

    All prompts of all users are scored together: about H times as many as `score` alone.
    """
    rows: list[np.ndarray] = []
    sentences: list[str] = []
    users: list[int] = []
    parts = []
    for user, profile in enumerate(profiles):
        candidates_C = candidates_UC[user][candidates_UC[user] >= 0]
        kept_H = ranker.writer.kept(histories[user], profile, candidates_C)
        shorter = [np.delete(kept_H, place) for place in range(len(kept_H))]
        rows += [kept_H, kept_H, *shorter]
        sentences += [profile, "", *[profile] * len(kept_H)]
        users += [user] * (len(kept_H) + 2)
        parts.append(kept_H)
    logp_XC = ranker.score(Ragged.from_rows(rows), sentences, candidates_UC[users], "explain")
    result, start = [], 0
    for kept_H in parts:
        whole_C, plain_C, *without = logp_XC[start : start + len(kept_H) + 2]
        start += len(kept_H) + 2
        there_C = np.isfinite(whole_C)
        lift_HC = np.where(there_C, whole_C - np.reshape(without, (len(kept_H), -1)), 0)
        result.append(Lifts(kept_H, lift_HC, np.where(there_C, whole_C - plain_C, 0)))
    return result
