"""Retriever, ranker and popularity together: a few weights, tuned on validation users.

The score of a candidate is

    log-softmax of the retriever's scores
    + ranker x max(0, 1 + gate x z) x log P(candidate | prompt)
    + popularity x log(1 + training interactions)

where z is the candidate's log popularity, standardised over the candidates of the user. A gate
above 0 trusts the ranker more on popular candidates, a gate below 0 more on rare ones.

Shapes: U users, C candidates, K items of a slate.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from palr_jax.evaluation.metrics import SLATE, ndcg

# 0 leaves a part out, so what adds nothing on validation users can do no harm there.
RANKER_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
POPULARITY_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
GATES = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Weights:
    """The weight of each part beside the retriever's 1.

    Attributes:
        ranker: of log P(candidate | prompt), at least 0.
        popularity: of log(1 + training interactions), at least 0.
        gate: how much more the ranker counts for popular candidates; 0 for no difference.
        per_user: whether the ranker's log-probabilities are standardised over the candidates of
            each user, so that its confidence is the same for all users.
    """

    ranker: float = 0.0
    popularity: float = 0.0
    gate: float = 0.0
    per_user: bool = False


@dataclass(frozen=True)
class Scores:
    """What is known of the candidates of some users, undefined where there is no candidate.

    Attributes:
        candidates_UC: item indices, -1 where there is no candidate.
        retriever_UC: the retriever's scores, -inf where there is no candidate.
        ranker_UC: the ranker's log-probabilities.
        popularity_UC: log(1 + training interactions).
    """

    candidates_UC: np.ndarray
    retriever_UC: np.ndarray
    ranker_UC: np.ndarray
    popularity_UC: np.ndarray

    def fused(self, weights: Weights) -> np.ndarray:
        """The score of each candidate, float [U, C]; very low where there is no candidate."""
        shifted_UC = self.retriever_UC - self.retriever_UC.max(axis=1, keepdims=True)
        log_UC = shifted_UC - np.log(np.exp(shifted_UC).sum(axis=1, keepdims=True))
        is_candidate_UC = self.candidates_UC >= 0
        ranker_UC = self.ranker_UC
        if weights.per_user:
            ranker_UC = standardised(ranker_UC, is_candidate_UC)
        gate_UC = np.ones_like(log_UC)
        if weights.gate:
            popularity_UC = standardised(self.popularity_UC, is_candidate_UC)
            gate_UC = np.maximum(0, 1 + weights.gate * popularity_UC)
        # -inf times a weight of 0 is NaN, and an absent candidate is -inf for both models.
        ranker_UC = np.where(np.isfinite(ranker_UC), ranker_UC, -1e9)
        return (
            log_UC + weights.ranker * gate_UC * ranker_UC + weights.popularity * self.popularity_UC
        )


def standardised(values_UC: np.ndarray, is_candidate_UC: np.ndarray) -> np.ndarray:
    """Values with mean 0 and variance 1 over the candidates of each user; unchanged elsewhere.

    Users whose values are all equal get zeros.
    """
    count_U1 = np.maximum(is_candidate_UC.sum(axis=1, keepdims=True), 1)
    known_UC = np.where(is_candidate_UC, values_UC, 0)
    centred_UC = np.where(is_candidate_UC, known_UC - known_UC.sum(1, keepdims=True) / count_U1, 0)
    deviation_U1 = np.sqrt((centred_UC**2).sum(axis=1, keepdims=True) / count_U1)
    scaled_UC = centred_UC / np.where(deviation_U1 > 1e-9, deviation_U1, 1)
    return np.where(is_candidate_UC, scaled_UC, values_UC)


def slates(candidates_UC: np.ndarray, score_UC: np.ndarray, k: int = SLATE) -> np.ndarray:
    """The k best candidates in order, [U, K]; ties go to the earlier candidate."""
    order_UK = np.argsort(-score_UC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates_UC, order_UK, axis=1)


def log_popularity(train_N: np.ndarray, num_items: int) -> np.ndarray:
    """log(1 + training interactions) of each item, [I]."""
    return np.log1p(np.bincount(train_N, minlength=num_items))


def popularity_of(items_UC: np.ndarray, popularity_I: np.ndarray) -> np.ndarray:
    """The log-popularity of each candidate, [U, C]; 0 for new items and for -1."""
    is_known_UC = (items_UC >= 0) & (items_UC < len(popularity_I))
    return np.where(is_known_UC, popularity_I[np.where(is_known_UC, items_UC, 0)], 0)


def tune(scores: Scores, target_U: np.ndarray, with_ranker: bool = True) -> Weights:
    """The weights with the best NDCG@10 on these users; the smallest of equals.

    A gate, and standardisation by user, are taken only if they are better than the best weights
    without them by more than two standard errors of the difference over users: with so many weights
    to choose from, a smaller gain may be noise.

    Args:
        scores: of the users' candidates.
        target_U: the item to find for each.
        with_ranker: whether the ranker takes part.
    """
    ranker_weights = RANKER_WEIGHTS if with_ranker else (0.0,)
    plain, plain_U = _best(
        scores, target_U, [Weights(*pair) for pair in product(ranker_weights, POPULARITY_WEIGHTS)]
    )
    if not with_ranker:
        return plain
    more = [
        Weights(ranker, popularity, gate, per_user)
        for ranker, popularity, gate, per_user in product(
            RANKER_WEIGHTS[1:], POPULARITY_WEIGHTS, (0.0, *GATES), (False, True)
        )
        if gate or per_user
    ]
    gated, gated_U = _best(scores, target_U, more)
    gain_U = gated_U - plain_U
    error = gain_U.std(ddof=1) / np.sqrt(len(gain_U)) if len(gain_U) > 1 else np.inf
    return gated if gain_U.mean() > 2 * error else plain


def _best(
    scores: Scores, target_U: np.ndarray, choices: list[Weights]
) -> tuple[Weights, np.ndarray]:
    """The first of the choices with the best mean NDCG@10, and its NDCG@10 of each user."""
    best, best_U = choices[0], np.full(len(target_U), -1.0)
    for weights in choices:
        score_UC = scores.fused(weights)
        mine_U = ndcg(target_rank(scores.candidates_UC, score_UC, target_U), SLATE)
        if mine_U.mean() > best_U.mean():
            best, best_U = weights, mine_U
    return best, best_U


def target_rank(
    candidates_UC: np.ndarray, score_UC: np.ndarray, target_U: np.ndarray
) -> np.ndarray:
    """The rank of each user's target, float [U], as in `slates`; infinite for an absent target."""
    is_target_UC = candidates_UC == target_U[:, None]
    column_U = is_target_UC.argmax(axis=1)
    score_U1 = np.take_along_axis(score_UC, column_U[:, None], axis=1)
    earlier_UC = np.arange(candidates_UC.shape[1]) < column_U[:, None]
    above_UC = (score_UC > score_U1) | ((score_UC == score_U1) & earlier_UC)
    return np.where(is_target_UC.any(axis=1), above_UC.sum(axis=1) + 1.0, np.inf)
