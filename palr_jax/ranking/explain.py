"""Explains recommendations: how much an item's probability drops without a part of the prompt.

Shapes: U users, C candidates, H history items in a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.io.progress import progress
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import Ranker

# Most history items in an explanation.
_NAMED = 3


@dataclass(frozen=True)
class Explanation:
    """Why an item is recommended: how much log P(item | prompt) drops without each part.

    Attributes:
        profile: the sentence about the user.
        profile_lift: the drop without it; 0 if the prompt has no profile.
        items: the history items with the largest drops, and the drops, largest first.
    """

    profile: str
    profile_lift: float
    items: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Lifts:
    """How much each part of a user's prompt adds to log P(candidate | prompt).

    Attributes:
        item_H: int32, the history items in the prompt, oldest first.
        lift_HC: log P with the whole prompt minus log P without the item.
        profile_C: the same for the profile sentence; 0 without one.
    """

    item_H: np.ndarray
    lift_HC: np.ndarray
    profile_C: np.ndarray


def explanations(
    ranker: Ranker,
    titles: Sequence[str],
    histories: Ragged,
    profiles: Sequence[str],
    candidates_UC: np.ndarray,
    retriever_UC: np.ndarray | None = None,
) -> list[dict[str, Explanation]]:
    """The explanation of each candidate of each user, by its title.

    Args:
        ranker: of the run.
        titles: of all items.
        histories: items per user, oldest first.
        profiles: a sentence per user.
        candidates_UC: item indices, padded with -1.
        retriever_UC: the retriever's scores of the candidates, for a ranker with a prior.
    """
    found = lifts(ranker, histories, profiles, candidates_UC, retriever_UC)
    return [
        {
            titles[item]: explanation(parts, profile, index, titles)
            for index, item in enumerate(row)
            if item >= 0
        }
        for parts, profile, row in zip(found, profiles, candidates_UC, strict=True)
    ]


def explanation(found: Lifts, profile: str, index: int, titles: Sequence[str]) -> Explanation:
    """Why the candidate at an index of a user's list is recommended."""
    lift_H = found.lift_HC[:, index]
    order_H = [number for number in np.argsort(-lift_H)[:_NAMED] if lift_H[number] > 0]
    named = tuple((titles[found.item_H[number]], float(lift_H[number])) for number in order_H)
    return Explanation(profile, float(found.profile_C[index]), named)


def lifts(
    ranker: Ranker,
    histories: Ragged,
    profiles: Sequence[str],
    candidates_UC: np.ndarray,
    retriever_UC: np.ndarray | None = None,
) -> list[Lifts]:
    """Scores every user's prompt again without each history item and without the profile.

    The prompts of all users are scored together: about H times as many as in `Ranker.score`.
    """
    rows: list[np.ndarray] = []
    sentences: list[str] = []
    users: list[int] = []
    parts = []
    for user, profile in enumerate(profiles):
        kept_H, shorter, profiles_of = ablations(
            ranker, histories[user], profile, candidates_UC[user]
        )
        rows += shorter
        sentences += profiles_of
        users += [user] * len(shorter)
        parts.append(kept_H)
    # Only the text that the ranker reads is ablated; the prior stays unchanged.
    scores_XC = None if retriever_UC is None else retriever_UC[users]
    with progress("explain", len(rows), "users") as advance:
        logp_XC = ranker.score(
            Ragged.from_rows(rows), sentences, candidates_UC[users], advance, scores_XC
        )
    result, start = [], 0
    for kept_H in parts:
        stop = start + len(kept_H) + 2
        result.append(lifts_of(kept_H, logp_XC[start:stop]))
        start = stop
    return result


def ablations(
    ranker: Ranker, history: np.ndarray, profile: str, candidates_C: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """The prompts whose scores explain the slate of a user.

    Returns:
        The history items in the prompt, int32 [H]; and the histories and the profiles of H + 2
        prompts: the whole one, the one without the profile, and those without each item.
    """
    items_C = candidates_C[candidates_C >= 0]
    kept_H = ranker.writer.ranking_prompt(history, profile, items_C).kept_H
    shorter = [np.delete(kept_H, index) for index in range(len(kept_H))]
    return kept_H, [kept_H, kept_H, *shorter], [profile, "", *[profile] * len(kept_H)]


def lifts_of(kept_H: np.ndarray, logp_XC: np.ndarray) -> Lifts:
    """The lifts of the parts of a prompt, from the scores of its `ablations`, [H + 2, C]."""
    whole_C, plain_C, *without = np.where(np.isfinite(logp_XC), logp_XC, 0)  # padding: -inf
    lift_HC = whole_C - np.reshape(without, (len(kept_H), len(whole_C)))
    return Lifts(kept_H, lift_HC, whole_C - plain_C)
