import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.trie import build
from palr_jax.instruct.choices import path_choices
from palr_jax.instruct.moments import edges_of
from palr_jax.ragged import Ragged
from tests.decoding.slow import dict_trie, item_texts


def branchings(texts: list[list[int]], target: int) -> list[tuple[int, set[int]]]:
    """(depth, tokens to choose from) of every choice on the path to a text."""
    node, found = dict_trie(dict(enumerate(texts))), []
    for depth, token in enumerate(texts[target]):
        if len(node.children) > 1:
            found.append((depth, set(node.children)))
        node = node.children[token]
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_path_holds_the_choices_that_lead_to_the_target(data: st.DataObject) -> None:
    texts = data.draw(item_texts(most=9, longest=7))
    target = data.draw(st.integers(0, len(texts) - 1))
    found = path_choices(Ragged.from_rows(texts), np.arange(len(texts)), target)
    expected = branchings(texts, target)
    assert found.order_C[found.target] == target
    assert found.order_C.tolist() == sorted(range(len(texts)), key=lambda item: texts[item])
    for source, (depth, tokens) in enumerate(expected):
        mine = found.source_E == source
        assert set(found.token_E[mine].tolist()) == tokens
        assert set(found.depth_E[mine].tolist()) == {depth}
        for token, first, last in zip(
            found.token_E[mine], found.first_E[mine], found.last_E[mine], strict=True
        ):
            below = [texts[leaf] for leaf in found.order_C[first : last + 1]]
            prefix = [*texts[target][:depth], int(token)]
            assert below == sorted(t for t in texts if t[: depth + 1] == prefix)
    assert len(set(found.source_E.tolist())) == len(expected)
    last = max((depth for depth, _ in expected), default=0)
    assert found.fed_F.tolist() == texts[target][:last]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_whole_trie_is_fed_as_ranking_feeds_it(data: st.DataObject) -> None:
    texts = data.draw(item_texts(most=9, longest=7))
    target = data.draw(st.integers(0, len(texts) - 1))
    items = Ragged.from_rows(texts)
    found = path_choices(items, np.arange(len(texts)), target, whole=True)
    plan = plan_score(build(items, np.arange(len(texts))[None]), whole=True)
    fed = len(found.fed_F)
    assert (plan.depth_BM > 0).sum() == fed
    np.testing.assert_array_equal(found.fed_F, plan.token_BM[0, :fed])
    np.testing.assert_array_equal(found.depth_F, plan.depth_BM[0, :fed])
    np.testing.assert_array_equal(found.horizon_F, plan.horizon_BM[0, :fed])
    np.testing.assert_array_equal(found.end_C, plan.end_BS[0, found.order_C])
    assert found.fed_F[found.path_P].tolist() == texts[target]


def test_a_single_candidate_takes_no_choice() -> None:
    found = path_choices(Ragged.from_rows([[3, 4, 1], [3, 5, 1]]), np.array([1]), 0)
    assert len(found.token_E) == len(found.fed_F) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_edges_never_outnumber_the_room_of_a_moment(whole: bool) -> None:
    # A comb: every choice separates one candidate from the rest.
    texts = [[2] * depth + [3, 1] for depth in range(20)]
    found = path_choices(Ragged.from_rows(texts), np.arange(20), 19, whole)
    assert len(found.token_E) == edges_of(20)
