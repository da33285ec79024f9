import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from palr_jax.errors import UserError
from palr_jax.ragged import Ragged
from palr_jax.retrieval.full_ranking import chunks, rank_targets, ranks, recommend

ITEMS = 12
scores_lists = st.lists(
    st.lists(st.integers(-2, 2).map(float), min_size=ITEMS, max_size=ITEMS), min_size=5, max_size=5
)


def problem(score_UI: np.ndarray, seed: int) -> tuple[Ragged, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(ITEMS)[: rng.integers(0, 6)] for _ in score_UI]
    return Ragged.from_rows(rows), rng.integers(0, ITEMS, len(score_UI)).astype(np.int32)


class Lookup:
    """Hands out the given scores chunk by chunk, and notes the sizes of the chunks."""

    def __init__(self, score_UI: np.ndarray) -> None:
        self.score_UI = score_UI
        self.given = 0
        self.sizes: list[int] = []

    def __call__(self, part: Ragged) -> jax.Array:
        self.sizes.append(len(part))
        score_BI = np.zeros((len(part), self.score_UI.shape[1]), np.float32)
        mine_BI = self.score_UI[self.given : self.given + len(part)]
        score_BI[: len(mine_BI)] = mine_BI
        self.given += len(part)
        return jnp.asarray(score_BI)


@settings(deadline=None, max_examples=50)
@given(scores_lists, st.integers(0, 1000))
def test_ranks_are_average_ranks_among_unseen_items(
    score_lists: list[list[float]], seed: int
) -> None:
    score_UI = np.array(score_lists, np.float32)
    histories, target_U = problem(score_UI, seed)
    found_U = ranks(Lookup(score_UI), histories, target_U, ITEMS)
    for user, target in enumerate(target_U):
        in_play = [i for i in range(ITEMS) if i == target or i not in histories[user]]
        average = rankdata(-score_UI[user][in_play], "average")
        assert found_U[user] == average[in_play.index(target)]


@settings(deadline=None, max_examples=50)
@given(scores_lists, st.integers(0, 1000), st.integers(1, 6))
def test_recommends_the_best_unseen_items(
    score_lists: list[list[float]], seed: int, k: int
) -> None:
    score_UI = np.array(score_lists, np.float32)
    histories, _ = problem(score_UI, seed)
    top = recommend(Lookup(score_UI), histories, k, ITEMS)
    for user in range(len(score_UI)):
        unseen = [i for i in range(ITEMS) if i not in histories[user]]
        best = sorted(unseen, key=lambda i: (-score_UI[user, i], i))[:k]
        assert top.item_UK[user].tolist() == best
        assert top.score_UK[user].tolist() == score_UI[user, best].tolist()
    assert top.item_UK.dtype == np.int32
    assert top.score_UK.dtype == np.float32


def test_hand_worked() -> None:
    score_BI = jnp.array([[3.0, 2, 2, 2, 1, 5]])
    seen_BS = jnp.array([[5, 6]])  # 6 fills up

    def rank(target: int) -> float:
        return float(rank_targets(score_BI, jnp.array([target]), seen_BS)[0])

    assert rank(0) == 1
    assert rank(1) == 3  # under item 0, and half of items 2 and 3
    assert rank(4) == 5
    assert rank(5) == 1  # seen, and yet ranked


def test_a_score_that_is_no_number_never_helps() -> None:
    score_BI = jnp.array([[jnp.nan, 2, 1], [jnp.nan, 2, 1], [jnp.nan, jnp.nan, jnp.nan]])
    seen_BS = jnp.full((3, 1), 3)
    rank_B = rank_targets(score_BI, jnp.array([0, 1, 2]), seen_BS)
    assert rank_B.tolist() == [3, 2, 3]


def test_many_users_run_in_chunks_of_one_size() -> None:
    rng = np.random.default_rng(0)
    score_UI = rng.integers(0, 4, (600, 30)).astype(np.float32)
    histories = Ragged.from_rows([rng.permutation(30)[: rng.integers(0, 9)] for _ in range(600)])
    target_U = rng.integers(0, 30, 600)
    scores = Lookup(score_UI)
    together_U = ranks(scores, histories, target_U, 30)
    assert len(scores.sizes) > 1
    assert len(set(scores.sizes)) == 1
    top = recommend(Lookup(score_UI), histories, 7, 30)
    for user in (0, 255, 256, 599):
        alone = histories.take([user])
        scores_1I = score_UI[user : user + 1]
        assert ranks(Lookup(scores_1I), alone, target_U[[user]], 30) == together_U[user]
        one = recommend(Lookup(scores_1I), alone, 7, 30)
        assert one.item_UK[0].tolist() == top.item_UK[user].tolist()


def test_chunks_hold_every_history_once_and_in_order() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 9, rng.integers(0, 5)).tolist() for _ in range(300)]
    parts = list(chunks(Ragged.from_rows(rows), 9))
    given = [part[row].tolist() for users, part in parts for row in range(users.stop - users.start)]
    assert given == rows
    assert [len(part) for _, part in parts] == [256, 256]
    assert not parts[-1][1].lengths_R[300 - 256 :].any()
    assert [len(part) for _, part in chunks(Ragged.from_rows(rows[:3]), 9)] == [4]


def test_nobody_to_rank() -> None:
    nobody = Ragged.from_rows([])
    scores = Lookup(np.zeros((0, ITEMS)))
    assert ranks(scores, nobody, np.zeros(0, np.int32), ITEMS).shape == (0,)
    assert recommend(scores, nobody, 3, ITEMS).item_UK.shape == (0, 3)


def test_too_few_unseen_items() -> None:
    histories = Ragged.from_rows([[0], [0, 1, 2, 3, 3]])
    score_UI = np.zeros((2, 6), np.float32)
    assert recommend(Lookup(score_UI), histories, 2, 6).item_UK.tolist() == [[1, 2], [4, 5]]
    with pytest.raises(UserError, match="history 1 leaves 2 unseen items of 6, but 3"):
        recommend(Lookup(score_UI), histories, 3, 6)
    with pytest.raises(UserError, match="7 items are asked for, but the catalog has 6"):
        recommend(Lookup(score_UI), histories, 7, 6)


@pytest.mark.parametrize("item", [-1, 6])
def test_an_item_the_catalog_lacks(item: int) -> None:
    histories = Ragged.from_rows([[0, 1], [], [2, item]])
    with pytest.raises(UserError, match=f"history 2 holds item {item}, but the catalog has 6"):
        recommend(Lookup(np.zeros((3, 6))), histories, 1, 6)
