"""Fusion: scores against a plain loop, and weights that are found again."""

from dataclasses import replace

import numpy as np
import pytest

from palr_jax.evaluation.fusion import (
    Scores,
    Weights,
    log_popularity,
    popularity_of,
    slates,
    standardised,
    target_rank,
    tune,
)
from palr_jax.evaluation.metrics import slate_rank

USERS, CANDIDATES = 400, 12


def scores(rng: np.random.Generator, absent: float = 0.1) -> Scores:
    """Random scores of random candidates, some of which are absent."""
    candidates_UC = rng.permuted(np.tile(np.arange(30), (USERS, 1)), axis=1)[:, :CANDIDATES]
    is_absent_UC = (rng.random(candidates_UC.shape) < absent) & (np.arange(CANDIDATES) > 1)
    logit_UC = np.where(is_absent_UC, -np.inf, rng.normal(size=candidates_UC.shape))
    total_U1 = np.logaddexp.reduce(logit_UC, axis=1, keepdims=True)
    return Scores(
        np.where(is_absent_UC, -1, candidates_UC),
        np.where(is_absent_UC, -np.inf, rng.normal(size=candidates_UC.shape)),
        (logit_UC - total_U1).astype(np.float32),
        np.where(is_absent_UC, 0, rng.normal(size=candidates_UC.shape) ** 2),
    )


def drawn(rng: np.random.Generator, given: Scores, weights: Weights) -> np.ndarray:
    """The first item of each user's slate, by the fused scores with a little noise."""
    noisy_UC = given.fused(weights) + 0.1 * rng.gumbel(size=given.candidates_UC.shape)
    return slates(given.candidates_UC, noisy_UC, 1)[:, 0]


@pytest.mark.parametrize(
    "weights",
    [Weights(), Weights(0.7), Weights(0.5, 0.2), Weights(0.5, 0.2, -0.5), Weights(2, 0.1, 1, True)],
)
def test_scores_are_those_of_a_plain_loop(weights: Weights) -> None:
    given = scores(np.random.default_rng(0))
    fused_UC = given.fused(weights)
    for user in range(20):
        there = np.flatnonzero(given.candidates_UC[user] >= 0)
        retriever, ranker, popularity = (
            array[user, there].astype(np.float64)
            for array in (given.retriever_UC, given.ranker_UC, given.popularity_UC)
        )
        if weights.per_user:
            ranker = (ranker - ranker.mean()) / ranker.std()
        z = (popularity - popularity.mean()) / popularity.std()
        expected = retriever - np.log(np.exp(retriever).sum())
        expected += weights.ranker * np.maximum(0, 1 + weights.gate * z) * ranker
        expected += weights.popularity * popularity
        np.testing.assert_allclose(fused_UC[user, there], expected, rtol=1e-5, atol=1e-6)
        absent = np.flatnonzero(given.candidates_UC[user] < 0)
        assert (fused_UC[user, absent] < expected.min()).all()


def test_equal_values_of_a_user_standardise_to_zero() -> None:
    values_UC = np.array([[3.0, 3.0, 9.0], [1.0, 2.0, 3.0]])
    scaled_UC = standardised(values_UC, np.array([[True, True, False], [True] * 3]))
    np.testing.assert_allclose(scaled_UC[0], [0, 0, 9])
    np.testing.assert_allclose(scaled_UC[1], [-np.sqrt(1.5), 0, np.sqrt(1.5)])


def test_ranks_are_those_in_the_slates() -> None:
    rng = np.random.default_rng(1)
    given = scores(rng)
    score_UC = np.round(given.fused(Weights(0.5)), 1)  # with ties
    target_U = rng.integers(30, size=USERS)
    expected_U = slate_rank(slates(given.candidates_UC, score_UC, CANDIDATES), target_U)
    np.testing.assert_array_equal(target_rank(given.candidates_UC, score_UC, target_U), expected_U)
    assert np.isinf(expected_U).any()


@pytest.mark.parametrize("made_with", [Weights(1.0, 0.3), Weights(1.0, 0.0, -1.0)])
def test_what_made_the_targets_is_found(made_with: Weights) -> None:
    rng = np.random.default_rng(2)
    given = scores(rng)
    found = tune(given, drawn(rng, given, made_with))
    assert 0.5 <= found.ranker <= 2
    assert bool(found.gate < 0) == bool(made_with.gate)
    if not made_with.gate:
        assert 0.2 <= found.popularity <= 0.5


def test_noise_gets_no_weight_and_no_gate() -> None:
    rng = np.random.default_rng(3)
    given = scores(rng)
    target_U = drawn(rng, given, Weights())
    found = tune(given, target_U)
    assert found.gate == 0
    assert not found.per_user
    assert found.ranker <= 0.1


def test_without_the_ranker_it_has_no_weight() -> None:
    rng = np.random.default_rng(4)
    given = scores(rng)
    target_U = drawn(rng, given, Weights(0.0, 0.5))
    found = tune(given, target_U, with_ranker=False)
    assert found == replace(found, ranker=0.0, gate=0.0, per_user=False)
    assert found.popularity >= 0.2


def test_popularity_counts_training_interactions() -> None:
    popularity_I = log_popularity(np.array([1, 1, 2]), 3)
    found_UC = popularity_of(np.array([[0, 1, 2, -1, 7]]), popularity_I)
    np.testing.assert_allclose(found_UC, [[0, np.log(3), np.log(2), 0, 0]])
