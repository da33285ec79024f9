import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palr_jax.evaluation.metrics import hit_rate, mrr, ndcg, slate_rank, summary

ranks = st.lists(
    st.integers(2, 60).map(lambda doubled: doubled / 2) | st.just(math.inf), min_size=1, max_size=30
)


def dcg_of_list(rank: float, k: int) -> float:
    """NDCG from its definition: a relevance per rank, against the ideal order."""
    relevance = [1.0 if place == rank else 0.0 for place in range(1, k + 1)]
    gains = [value / math.log2(place + 2) for place, value in enumerate(relevance)]
    return sum(gains) / (1 / math.log2(2))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 50))
def test_integer_ranks_give_the_metrics_of_a_list(rank_list: list[int], k: int) -> None:
    rank_U = np.array(rank_list, float)
    np.testing.assert_allclose(ndcg(rank_U, k), [dcg_of_list(rank, k) for rank in rank_list])
    found = [rank in range(1, k + 1) for rank in rank_list]
    np.testing.assert_array_equal(hit_rate(rank_U, k), found)
    np.testing.assert_allclose(
        mrr(rank_U, k), [f / r for f, r in zip(found, rank_list, strict=True)]
    )


@given(ranks, st.integers(1, 50))
def test_halves_and_absent_items(rank_list: list[float], k: int) -> None:
    rank_U = np.array(rank_list)
    for user, rank in enumerate(rank_list):
        inside = rank <= k
        assert hit_rate(rank_U, k)[user] == (1 if inside else 0)
        assert ndcg(rank_U, k)[user] == pytest.approx(1 / math.log2(1 + rank) if inside else 0)
        assert mrr(rank_U, k)[user] == pytest.approx(1 / rank if inside else 0)


@given(ranks)
def test_a_better_rank_is_never_worth_less(rank_list: list[float]) -> None:
    rank_U = np.sort(np.array(rank_list))
    for metric in (hit_rate, ndcg, mrr):
        assert (np.diff(metric(rank_U, 10)) <= 0).all()


def test_hand_worked() -> None:
    rank_U = np.array([1, 2, 3.5, 10, 10.5, 51, np.inf])
    assert hit_rate(rank_U, 10).tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert hit_rate(rank_U, 50).tolist() == [1, 1, 1, 1, 1, 0, 0]
    expected = [1, 0.6309297535714575, 0.4608454, 0.2890648263178879, 0, 0, 0]
    np.testing.assert_allclose(ndcg(rank_U, 10), expected, rtol=1e-6)
    np.testing.assert_allclose(mrr(rank_U, 10), [1, 0.5, 1 / 3.5, 0.1, 0, 0, 0])


def test_summary_is_the_mean_over_users() -> None:
    rank_U = np.array([1.0, 4.0, 7.0, np.inf])
    means = summary(rank_U)
    assert list(means) == ["HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"]
    assert means["HR@1"] == 0.25
    assert means["HR@5"] == 0.5
    assert means["HR@10"] == 0.75
    assert means["NDCG@5"] == pytest.approx((1 + 1 / math.log2(5)) / 4)
    assert means["NDCG@10"] == pytest.approx((1 + 1 / math.log2(5) + 1 / 3) / 4)
    assert means["MRR"] == pytest.approx((1 + 1 / 4 + 1 / 7) / 4)


def test_summary_of_zero_users_is_refused() -> None:
    with pytest.raises(ValueError, match="no users"):
        summary(np.zeros(0))


def test_slate_rank() -> None:
    slate_UK = np.array([[7, 8, 9], [7, 8, 9], [7, 8, 9], [0, 1, 2]])
    rank_U = slate_rank(slate_UK, np.array([7, 9, 3, 0]))
    assert rank_U.tolist() == [1, 3, np.inf, 1]
    assert hit_rate(rank_U, 3).tolist() == [1, 1, 0, 1]
    assert mrr(rank_U, 10).tolist() == [1, 1 / 3, 0, 1]
