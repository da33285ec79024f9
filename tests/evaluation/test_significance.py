import numpy as np
import pytest

from palr_jax.evaluation import significance
from palr_jax.evaluation.significance import paired_bootstrap


def test_equal_metrics_differ_by_nothing() -> None:
    metric_U = np.random.default_rng(0).random(100)
    assert paired_bootstrap(metric_U, metric_U.copy(), seed=1) == (0.0, 0.0)


def test_a_constant_shift_has_no_spread() -> None:
    metric_U = np.random.default_rng(0).integers(0, 8, 100) / 8  # exact in floating point
    assert paired_bootstrap(metric_U + 0.25, metric_U, seed=1) == (0.25, 0.25)


def test_the_interval_turns_with_the_order_of_the_models() -> None:
    rng = np.random.default_rng(0)
    a_U, b_U = rng.random(200), rng.random(200)
    low, high = paired_bootstrap(a_U, b_U, seed=1)
    low_back, high_back = paired_bootstrap(b_U, a_U, seed=1)
    assert low < (a_U - b_U).mean() < high
    assert (low, high) == pytest.approx((-high_back, -low_back), abs=0.01)


def test_agrees_with_drawing_users_one_by_one() -> None:
    rng = np.random.default_rng(3)
    a_U = (rng.random(80) < 0.4).astype(float)
    b_U = (rng.random(80) < 0.2).astype(float)
    means = []
    for _ in range(4000):
        user_U = rng.integers(0, 80, 80)
        means.append(a_U[user_U].mean() - b_U[user_U].mean())
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose(paired_bootstrap(a_U, b_U, seed=0), expected, atol=0.014)


def test_covers_the_true_difference_about_95_times_in_100() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(400):
        base_U = rng.random(150)
        a_U, b_U = base_U + rng.normal(0.1, 0.5, 150), base_U
        low, high = paired_bootstrap(a_U, b_U, seed=trial, samples=500)
        covered += low <= 0.1 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_pairing_takes_out_what_users_share() -> None:
    rng = np.random.default_rng(5)
    shared_U = rng.normal(0, 10, 300)
    a_U, b_U = shared_U + rng.normal(0.2, 0.1, 300), shared_U
    low, high = paired_bootstrap(a_U, b_U, seed=0)
    assert 0.15 < low < high < 0.25


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    a_U, b_U = rng.random(50), rng.random(50)
    assert paired_bootstrap(a_U, b_U, seed=1) == paired_bootstrap(a_U, b_U, seed=1)
    assert paired_bootstrap(a_U, b_U, seed=1) != paired_bootstrap(a_U, b_U, seed=2)


def test_drawing_in_portions_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a_U, b_U = rng.random(50), rng.random(50)
    whole = paired_bootstrap(a_U, b_U, seed=1)
    monkeypatch.setattr(significance, "_MAX_COUNTS", 700)
    assert paired_bootstrap(a_U, b_U, seed=1) == pytest.approx(whole, abs=1e-12)


def test_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="same users"):
        paired_bootstrap(np.zeros(3), np.zeros(1), seed=0)
    with pytest.raises(ValueError, match="no users"):
        paired_bootstrap(np.zeros(0), np.zeros(0), seed=0)
