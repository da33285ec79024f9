import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.decoding.trie import Trie, build
from palr_jax.ragged import Ragged
from tests.decoding.slow import Node, dict_trie, item_texts, slot_rows


def check_row(trie: Trie, row: int, root: Node) -> None:
    """Walks the dict trie in the order of tokens and compares every field."""
    leaves = 0
    nodes = 0

    def field(name: str, node: int) -> int:
        return int(getattr(trie, name)[row, node])

    def walk(node: Node, token: int, depth: int, parent: int) -> int:
        nonlocal leaves, nodes
        index, nodes, first = nodes, nodes + 1, leaves
        if not node.children:
            assert trie.slot_RS[row, leaves] == node.slots[0]
            leaves += 1
        children = [
            walk(child, token, depth + 1, index) for token, child in sorted(node.children.items())
        ]
        child, count = field("first_child_RN", index), len(children)
        assert field("num_children_RN", index) == count
        if count:
            assert trie.level_RN[row, child : child + count].tolist() == children
        assert field("token_RN", index) == token
        assert field("depth_RN", index) == depth
        assert field("parent_RN", index) == parent
        assert field("first_leaf_RN", index) == first
        assert field("last_leaf_RN", index) == leaves - 1
        run, below = 0, node
        while len(below.children) == 1:
            run, below = run + 1, next(iter(below.children.values()))
        single = depth == 0 and len(node.slots) == 1
        assert field("run_RN", index) == (0 if single else run)
        assert count <= trie.max_children
        assert depth <= trie.max_depth
        assert depth or single or run <= trie.root_run
        return index

    if root.slots:
        walk(root, 0, 0, 0)
    assert (trie.slot_RS[row, leaves:] == -1).all()
    assert (trie.num_children_RN[row, nodes:] == 0).all()
    assert (trie.depth_RN[row, nodes:] == 0).all()
    assert (trie.last_leaf_RN[row, nodes:] == -1).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_field_equals_a_dict_trie(data: st.DataObject) -> None:
    texts = data.draw(item_texts(most=9, longest=12))
    slots = data.draw(slot_rows(rows=3, slots=7, items=len(texts)))
    trie = build(Ragged.from_rows(texts), slots)
    for row in range(3):
        candidates = {s: texts[item] for s, item in enumerate(slots[row]) if item >= 0}
        check_row(trie, row, dict_trie(candidates))


def test_a_whole_catalog_in_one_row() -> None:
    rng = np.random.default_rng(0)
    texts = {tuple(rng.integers(2, 40, rng.integers(1, 9))) for _ in range(2000)}
    rows = [[*map(int, text), 1] for text in texts]
    trie = build(Ragged.from_rows(rows), np.arange(len(rows))[None])
    check_row(trie, 0, dict_trie(dict(enumerate(rows))))


def test_no_candidates_at_all() -> None:
    trie = build(Ragged.from_rows([[4, 1]]), np.full((2, 3), -1))
    check_row(trie, 0, Node())
    check_row(trie, 1, Node())


@pytest.mark.parametrize(
    "texts, message",
    [
        ([[5, 1], [3, 4, 1], [3, 4]], "item 1 begins with all tokens of item 2 in row 1"),
        ([[5, 1], [3, 4, 1], [3, 4, 1]], "item 2 begins with all tokens of item 1 in row 1"),
        ([[5, 1], [3, 4, 1], []], "item 2 has no tokens"),
    ],
)
def test_texts_that_cannot_be_told_apart_are_refused(texts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Ragged.from_rows(texts), np.array([[0, 1], [1, 2]]))
    build(Ragged.from_rows(texts), np.array([[0, 1], [1, 0]]))


def test_an_item_may_not_stand_twice_in_a_row() -> None:
    with pytest.raises(ValueError, match="item 0 begins with all tokens of item 0 in row 0"):
        build(Ragged.from_rows([[5, 1], [3, 1]]), np.array([[0, 1, 0]]))


def test_similar_tries_have_the_same_shapes() -> None:
    rng = np.random.default_rng(1)
    rows = [[*map(int, rng.integers(2, 4000, rng.integers(8, 15))), 1] for _ in range(400)]
    items = Ragged.from_rows(rows)
    one, two = (build(items, rng.permutation(400)[:200].reshape(4, 50)) for _ in range(2))
    assert one.token_RN.shape == two.token_RN.shape
    assert (one.max_children, one.max_depth) == (two.max_children, two.max_depth)
