import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from palr_jax.errors import UserError
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking
from palr_jax.retrieval.full_ranking import Scorer, bucket, chunks, ranks, recommend, scores
from tests.programs import forget

ITEMS = 12


def multi_hot(histories: Ragged, items: int) -> np.ndarray:
    hot_UI = np.zeros((len(histories), items), np.float32)
    for user in range(len(histories)):
        np.add.at(hot_UI[user], histories[user], 1)
    return hot_UI


def product(query_BI: jax.Array, item_CI: jax.Array) -> jax.Array:
    return query_BI @ item_CI.T


class World:
    """Integer scores, so that ties occur; they depend only on the history."""

    def __init__(self, seed: int, users: int = 5, items: int = ITEMS, longest: int = 6) -> None:
        rng = np.random.default_rng(seed)
        self.item_II = rng.integers(-1, 2, (items, items)).astype(np.float32)
        rows = [rng.permutation(items)[: rng.integers(0, longest)] for _ in range(users)]
        self.histories = Ragged.from_rows(rows)
        self.target_U = rng.integers(0, items, users).astype(np.int32)
        self.sizes: list[int] = []

    @property
    def score_UI(self) -> np.ndarray:
        return multi_hot(self.histories, len(self.item_II)) @ self.item_II.T

    def scorer(self) -> Scorer:
        def queries(part: Ragged) -> np.ndarray:
            self.sizes.append(len(part))
            return multi_hot(part, len(self.item_II))

        return Scorer(queries, self.item_II, product)

    def in_play(self, user: int) -> list[int]:
        seen = set(self.histories[user]) - {self.target_U[user]}
        return [item for item in range(len(self.item_II)) if item not in seen]

    def check(self, k: int) -> None:
        """Ranks and top items are those of a plain loop over users."""
        items, score_UI = len(self.item_II), self.score_UI
        rank_U = ranks(self.scorer(), self.histories, self.target_U, items)
        top = recommend(self.scorer(), self.histories, k, items)
        for user, target in enumerate(self.target_U):
            in_play = self.in_play(user)
            average = rankdata(-score_UI[user][in_play], "average")
            assert rank_U[user] == average[in_play.index(target)]
            unseen = [item for item in range(items) if item not in self.histories[user]]
            best = sorted(unseen, key=lambda item: (-score_UI[user, item], item))[:k]
            assert top.item_UK[user].tolist() == best
            assert top.score_UK[user].tolist() == score_UI[user, best].tolist()
        assert top.item_UK.dtype == np.int32
        assert top.score_UK.dtype == np.float32


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_ranks_are_average_ranks_and_the_best_come_first(seed: int, k: int) -> None:
    World(seed).check(k)


@pytest.mark.parametrize("k", [1, 30])
def test_items_in_chunks_on_several_devices(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    assert len(jax.local_devices()) == 8
    monkeypatch.setattr(full_ranking, "_devices", jax.local_devices)
    monkeypatch.setattr(full_ranking, "_ITEMS", 7)  # 101 items: 13 on a device, in two chunks
    forget(full_ranking._rank)
    World(3, users=40, items=101, longest=60).check(k)
    forget(full_ranking._rank)


def constant(score_I: list[float]) -> Scorer:
    """The same scores for all users."""
    return Scorer(lambda part: np.ones((len(part), 1)), np.array(score_I)[:, None], product)


def test_hand_worked() -> None:
    scorer = constant([3, 2, 2, 2, 1, 5])
    history = Ragged.from_rows([[5]])

    def rank(target: int) -> float:
        return float(ranks(scorer, history, np.array([target]), 6)[0])

    assert rank(0) == 1
    assert rank(1) == 3  # under item 0, and half of items 2 and 3
    assert rank(4) == 5
    assert rank(5) == 1  # seen, and yet ranked


def test_a_score_that_is_no_number_never_helps() -> None:
    histories = Ragged.from_rows([[], []])
    assert ranks(constant([np.nan, 2, 1]), histories, np.array([0, 1]), 3).tolist() == [3, 2]
    assert ranks(constant([np.nan] * 3), histories, np.array([2, 0]), 3).tolist() == [3, 3]


def test_many_users_run_in_chunks_of_one_size() -> None:
    world = World(0, users=600, items=30, longest=9)
    world.check(7)
    assert len(world.sizes) > 2
    assert len(set(world.sizes)) == 1


def test_chunks_hold_every_history_once_and_the_short_ones_first() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 9, rng.integers(0, 5)).tolist() for _ in range(300)]
    parts = list(chunks(Ragged.from_rows(rows), 9))
    users = np.concatenate([users_B for users_B, _ in parts])
    given_rows = [part[row] for users_B, part in parts for row in range(len(users_B))]
    assert [row.tolist() for row in given_rows] == [rows[user] for user in users]
    assert sorted(users) == list(range(300))
    assert [len(row) for row in given_rows] == sorted(len(row) for row in rows)
    assert [len(part) for _, part in parts] == [256, 256]
    assert not parts[-1][1].lengths_R[300 - 256 :].any()
    assert [len(part) for _, part in chunks(Ragged.from_rows(rows[:3]), 9)] == [4]


@given(st.integers(0, 5000))
def test_a_bucket_holds_what_it_is_for(length: int) -> None:
    assert length <= bucket(length) <= max(16, 4 * length)
    assert bucket(bucket(length)) == bucket(length)


def test_scores_of_everything() -> None:
    world = World(5, users=9)
    found_UI = scores(world.scorer(), world.histories, ITEMS)
    np.testing.assert_array_equal(found_UI, world.score_UI)
    assert found_UI.dtype == jnp.float32


def test_zero_users_are_ranked() -> None:
    nobody = Ragged.from_rows([])
    scorer = World(0).scorer()
    assert ranks(scorer, nobody, np.zeros(0, np.int32), ITEMS).shape == (0,)
    assert recommend(scorer, nobody, 3, ITEMS).item_UK.shape == (0, 3)


def test_too_few_unseen_items() -> None:
    histories = Ragged.from_rows([[0], [0, 1, 2, 3, 3]])
    assert recommend(constant([0] * 6), histories, 2, 6).item_UK.tolist() == [[1, 2], [4, 5]]
    top = recommend(constant([0] * 6), histories, 3, 6)
    assert top.item_UK.tolist() == [[1, 2, 3], [4, 5, -1]]
    assert np.isneginf(top.score_UK).tolist() == [[False] * 3, [False, False, True]]
    top = recommend(constant([0] * 6), histories, 7, 6)
    assert top.item_UK.tolist() == [[1, 2, 3, 4, 5, -1, -1], [4, 5, -1, -1, -1, -1, -1]]


@pytest.mark.parametrize("item", [-1, 6])
def test_an_item_the_catalog_lacks(item: int) -> None:
    histories = Ragged.from_rows([[0, 1], [], [2, item]])
    with pytest.raises(UserError, match=f"history 2 holds item {item}, but the catalog has 6"):
        recommend(constant([0] * 6), histories, 1, 6)
