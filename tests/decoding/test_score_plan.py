"""A plan made in parts is that of all rows."""

import jax
import numpy as np
import pytest

from palr_jax.decoding.score_plan import ScorePlan, Sizes, join, plan_score, sizes_of
from palr_jax.decoding.trie import build
from palr_jax.ragged import Ragged

ROWS, SLOTS = 9, 12


def make_items(rng: np.random.Generator) -> Ragged:
    """Sixty items that share prefixes of up to five tokens."""
    heads = (rng.integers(0, 5, rng.integers(1, 6)) for _ in range(60))
    return Ragged.from_rows(np.append(head, 100 + item) for item, head in enumerate(heads))


def assert_same(mine: ScorePlan, other: ScorePlan) -> None:
    structures: list[object] = [jax.tree.structure(plan) for plan in (mine, other)]
    assert structures[0] == structures[1]
    jax.tree.map(np.testing.assert_array_equal, mine, other)


@pytest.mark.parametrize("whole", [False, True])
def test_parts_and_other_orders_give_the_plan_of_all_rows(whole: bool) -> None:
    rng = np.random.default_rng(0)
    items = make_items(rng)
    items_RS = np.array([rng.permutation(60)[:SLOTS] for _ in range(ROWS)])
    items_RS[3, 5:] = -1
    sizes = sizes_of(build(items, items_RS), whole)
    sizes = Sizes(sizes.fed + 16, 2 * sizes.edges, sizes.depth)
    parts = [plan_score(build(items, items_RS[s : s + 4]), None, whole) for s in (0, 4, 8)]
    plan = join([part.padded(sizes) for part in parts])
    assert_same(plan, plan_score(build(items, items_RS), sizes, whole))
    order_RS = np.array([rng.permutation(SLOTS) for _ in range(ROWS)])
    shuffled = plan_score(build(items, np.take_along_axis(items_RS, order_RS, 1)), sizes, whole)
    assert_same(plan.in_order(order_RS), shuffled)
    rows_B = np.array([5, 5, 0])
    assert_same(plan.take(rows_B), plan_score(build(items, items_RS[rows_B]), sizes, whole))


def test_no_rows_have_a_plan() -> None:
    items = make_items(np.random.default_rng(0))
    plan = plan_score(build(items, np.zeros((0, SLOTS), int)))
    assert plan.token_BM.shape == (0, 8)
    assert plan.leaf_BS.shape == (0, SLOTS)
