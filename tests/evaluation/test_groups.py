"""Groups of users and moves of their items, against plain loops."""

import math

import numpy as np
import pytest

from palr_jax.evaluation.groups import (
    FEWEST,
    HISTORY_ENDS,
    POPULARITY_ENDS,
    Range,
    lifts,
    moves,
    position,
    ranges,
    rank_ranges,
)
from palr_jax.evaluation.metrics import ndcg
from palr_jax.evaluation.significance import paired_bootstrap


@pytest.mark.parametrize("ends", [HISTORY_ENDS, POPULARITY_ENDS, (3,)])
def test_every_value_is_in_one_range(ends: tuple[int, ...]) -> None:
    values = np.arange(300)
    held = np.stack([group.holds(values) for group in ranges(0, ends)])
    np.testing.assert_array_equal(held.sum(axis=0), 1)


def test_labels_say_what_a_range_holds() -> None:
    labels = [group.label for group in ranges(0, POPULARITY_ENDS)]
    assert labels == ["0", "1–5", "6–20", ">20"]


@pytest.mark.parametrize(
    ("candidates", "labels"),
    [
        (50, ["1", "2–3", "4–5", "6–10", "11–20", "21–50", ">50"]),
        (20, ["1", "2–3", "4–5", "6–10", "11–20", ">20"]),
        (12, ["1", "2–3", "4–5", "6–10", "11–12", ">12"]),
        (1, ["1", ">1"]),
    ],
)
def test_the_last_rank_range_is_not_a_candidate(candidates: int, labels: list[str]) -> None:
    found = rank_ranges(candidates)
    assert [group.label for group in found] == labels
    assert found[-1] == Range(candidates + 1, None)


def test_positions_count_from_one_and_missing_targets_come_after_all() -> None:
    candidates_UC = np.array([[5, 6, 7], [8, -1, -1], [1, 2, 3]])
    assert position(candidates_UC, np.array([7, 8, 9])).tolist() == [3, 1, 4]


def test_lifts_are_means_and_bootstraps_of_the_users_of_a_group() -> None:
    rng = np.random.default_rng(3)
    values_U = rng.integers(0, 40, 300)
    values_U[:4] = 200  # a group of fewer users than FEWEST
    base_U = rng.integers(1, 30, 300).astype(float)
    ranks = {
        "one": rng.integers(1, 30, 300).astype(float),
        "two": np.where(rng.random(300) < 0.5, np.inf, base_U),
    }
    rows = lifts(values_U, ranges(0, HISTORY_ENDS), ("base", base_U), ranks, 7, 400)
    assert [row["label"] for row in rows] == ["0–5", "6–10", "11–20", "21–50", ">100"]
    assert sum(row["users"] for row in rows) == 300
    for row in rows:
        users = [
            user
            for user, value in enumerate(values_U)
            if row["from"] <= value and (row["to"] is None or value <= row["to"])
        ]
        assert row["users"] == len(users)
        gains = [1 / math.log2(1 + base_U[user]) * (base_U[user] <= 10) for user in users]
        assert row["base"] == pytest.approx(np.mean(gains), abs=1e-6)
        for model, rank_U in ranks.items():
            mine = [
                1 / math.log2(1 + rank_U[user]) if rank_U[user] <= 10 else 0.0 for user in users
            ]
            lift = row["lift"][model]
            assert lift["mean"] == pytest.approx(np.mean(mine) - np.mean(gains), abs=2e-6)
            if len(users) < FEWEST:
                assert lift["ci95"] is None
                continue
            bounds = paired_bootstrap(ndcg(rank_U[users], 10), ndcg(base_U[users], 10), 7, 400)
            assert lift["ci95"] == pytest.approx(bounds, abs=1e-6)
            assert lift["ci95"][0] <= lift["mean"] <= lift["ci95"][1]


def test_moves_count_every_found_item_once() -> None:
    rng = np.random.default_rng(0)
    before_U = rng.integers(1, 26, 500)  # above 20: not a candidate
    after_U = np.where(before_U <= 20, rng.integers(1, 21, 500), np.inf)
    given = moves(before_U, after_U, 20)
    inside = rank_ranges(20)[:-1]
    expected = np.zeros((len(inside), len(inside)), int)
    raised = lowered = 0
    for before, after in zip(before_U, after_U, strict=True):
        if before <= 20:
            row = next(i for i, part in enumerate(inside) if part.low <= before <= part.high)
            column = next(i for i, part in enumerate(inside) if part.low <= after <= part.high)
            expected[row, column] += 1
            raised += after < before
            lowered += after > before
    np.testing.assert_array_equal(given["counts"], expected)
    assert (given["raised"], given["lowered"]) == (raised, lowered)
    assert given["raised"] + given["kept"] + given["lowered"] == (before_U <= 20).sum()
