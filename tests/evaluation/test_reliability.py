"""Reliability against a plain loop, and of probabilities that are right."""

import numpy as np
import pytest
from scipy.stats import binomtest

from palr_jax.evaluation.reliability import EDGES, reliability, wilson

USERS, CANDIDATES = 300, 15


def drawn(seed: int, users: int = USERS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of candidates, some absent, and targets, some of which are absent."""
    rng = np.random.default_rng(seed)
    candidates_UC = np.tile(np.arange(CANDIDATES), (users, 1))
    candidates_UC[: users // 10, -4:] = -1
    logit_UC = np.where(candidates_UC >= 0, 2 * rng.normal(size=candidates_UC.shape), -np.inf)
    logp_UC = logit_UC - np.logaddexp.reduce(logit_UC, axis=1, keepdims=True)
    # The item that is drawn by these very probabilities.
    target_U = (logp_UC + rng.gumbel(size=logp_UC.shape)).argmax(axis=1)
    return logp_UC, candidates_UC, np.where(rng.random(users) < 0.3, 99, target_U)


def test_bins_are_those_of_a_plain_loop() -> None:
    logp_UC, candidates_UC, target_U = drawn(1)
    bins = reliability(logp_UC.astype(np.float32), candidates_UC, target_U)
    total = dict.fromkeys(("found", "all"), 0)
    for one in bins:
        pairs: dict[str, list[tuple[float, bool]]] = {"found": [], "all": []}
        for user, target in enumerate(target_U):
            for logp, item in zip(logp_UC[user], candidates_UC[user], strict=True):
                if item >= 0 and one["from"] < np.exp(logp) <= one["to"]:
                    pairs["all"].append((np.exp(logp), item == target))
                    if target in candidates_UC[user]:
                        pairs["found"].append(pairs["all"][-1])
        for kind, among in pairs.items():
            total[kind] += len(among)
            assert one[kind]["candidates"] == len(among)
            assert one[kind]["predicted"] == pytest.approx(np.mean([p for p, _ in among]), abs=1e-5)
            assert one[kind]["observed"] == pytest.approx(np.mean([y for _, y in among]), abs=1e-6)
            low, high = one[kind]["ci95"]
            assert low <= one[kind]["observed"] <= high
    is_found_U = target_U != 99
    assert total["all"] == (candidates_UC >= 0).sum()
    assert total["found"] == (candidates_UC[is_found_U] >= 0).sum()


def test_right_probabilities_are_on_the_diagonal_for_users_whose_item_was_found() -> None:
    bins = reliability(*drawn(2, 20_000))
    assert len(bins) == len(EDGES) - 1
    for one in bins:
        assert one["found"]["observed"] == pytest.approx(one["found"]["predicted"], abs=0.02)
        assert one["all"]["observed"] == pytest.approx(0.7 * one["all"]["predicted"], abs=0.02)


def test_certain_and_impossible_candidates_are_counted() -> None:
    logp_UC = np.array([[1e-7, -np.inf]])  # rounding took the probability above 1
    (low, high) = reliability(logp_UC, np.array([[4, 5]]), np.array([4]))
    assert (low["from"], low["all"]["candidates"], low["all"]["observed"]) == (0, 1, 0)
    assert (high["to"], high["all"]["candidates"], high["all"]["observed"]) == (1, 1, 1)
    assert low["found"] == low["all"]


def test_bins_without_a_found_item_say_so() -> None:
    (one,) = reliability(np.log([[0.5, 0.5]]), np.array([[4, 5]]), np.array([9]))
    assert one["found"] is None
    assert one["all"]["candidates"] == 2


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 50), (7, 50), (50, 50), (3, 9999)])
def test_the_interval_is_that_of_wilson(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx(tuple(expected), abs=1e-12)
