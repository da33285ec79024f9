"""The trie of item texts that constrains decoding, as flat arrays.

Shapes: R rows (one trie each), S slots (candidates of a row), N nodes of a row. While building, all
rows are concatenated: L leaves and N nodes of all rows together, G groups of siblings.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from palr_jax.padding import to_multiple, to_power_of_two
from palr_jax.ragged import Ragged

Array = np.ndarray | jax.Array

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trie:
    """One trie per row, or a single one (R = 1) that all rows of a batch share.

    Node 0 is the root: it represents the last token of the prompt and has no token itself. The
    nodes of a row are in preorder, so the first child of node n is n + 1, and the leaves below a
    node are a range. Every axis is padded on the right. Sizes are rounded up, so that tries of
    similar size share a compiled program; the tries of many users can be built in one call and
    split into batches with `jax.tree.map`.

    Attributes:
        token_RN: int32, the token that leads to a node (0 at the root).
        parent_RN: int32, the parent of a node (of the root, itself).
        depth_RN: int32, number of tokens from the root to the node.
        level_RN: int32, the nodes sorted by depth; in this order siblings are adjacent.
        first_child_RN: int32, the index in `level_RN` of the first child of a node.
        num_children_RN: int32, number of children; 0 at leaves and padding.
        run_RN: int32, length of the forced run: each of the nodes n + 1 to n + run is the only
            child of the previous one, and the last of them branches or is a leaf. 0 at the root
            of a trie with a single leaf, so that writing an item always takes a decision.
        first_leaf_RN: int32, the first leaf below a node (of a leaf, itself).
        last_leaf_RN: int32, the last leaf below a node; -1 at padding.
        slot_RS: int32, the slot of each leaf; -1 after the last leaf.
        leaf_RS: int32, the leaf of each slot; -1 in empty slots.
        max_children: upper bound of the children of a node.
        max_depth: upper bound of the tokens of an item.
        root_run: upper bound of the forced run of a root.
    """

    token_RN: Array
    parent_RN: Array
    depth_RN: Array
    level_RN: Array
    first_child_RN: Array
    num_children_RN: Array
    run_RN: Array
    first_leaf_RN: Array
    last_leaf_RN: Array
    slot_RS: Array
    leaf_RS: Array
    max_children: int = field(metadata=_STATIC)
    max_depth: int = field(metadata=_STATIC)
    root_run: int = field(metadata=_STATIC)


def build(item_tokens: Ragged, slots_RS: np.ndarray) -> Trie:
    """Builds the trie of each row, as numpy arrays.

    Args:
        item_tokens: the tokens of every item of the catalog. Within a row, no item may be a prefix
            of another: end each with a token that occurs nowhere else.
        slots_RS: int, the item in each slot of each row; -1 in empty slots.

    Raises:
        ValueError: an item has no tokens, or is a prefix of another in the same row.
    """
    row_L, slot_L = np.nonzero(slots_RS >= 0)
    item_L = slots_RS[row_L, slot_L].astype(np.int64)
    order_L, shared_L = _sort_leaves(item_tokens, row_L, item_L)
    slot_L, item_L = slot_L[order_L], item_L[order_L]

    # A leaf adds the nodes that it does not share with the previous leaf. The first leaf of a row
    # shares -1 nodes: it adds the root as well.
    fresh_L = item_tokens.lengths_R[item_L] - shared_L
    start_L = np.cumsum(fresh_L) - fresh_L
    leaf_N = np.repeat(np.arange(len(item_L)), fresh_L)
    depth_N = np.arange(len(leaf_N)) + (shared_L + 1 - start_L)[leaf_N]
    text_N = item_tokens.offsets_R1[item_L][leaf_N] + np.maximum(depth_N - 1, 0)
    token_N = np.where(depth_N > 0, item_tokens.values_N[text_N], 0)

    row_N = row_L[leaf_N]
    links = _link(row_N, depth_N)
    last_leaf_N = leaf_N[links.end_N]
    single_N = (depth_N == 0) & (last_leaf_N == leaf_N)
    run_N = np.where(single_N, 0, _forced_runs(links.num_children_N))

    # From here on, indices of nodes and leaves are relative to their row.
    row_leaf_L = np.searchsorted(row_L, row_L)
    row_node_N, row_leaf_N = start_L[row_leaf_L][leaf_N], row_leaf_L[leaf_N]
    shape = (len(slots_RS), to_power_of_two(int(np.bincount(row_N).max(initial=1)), 8))
    index_N = np.arange(len(row_N)) - row_node_N

    def pad(values_N: np.ndarray, fill: int = 0) -> np.ndarray:
        values_RN = np.full(shape, fill, np.int32)
        values_RN[row_N, index_N] = values_N
        return values_RN

    slot_RS = np.full(slots_RS.shape, -1, np.int32)
    leaf_RS = np.full(slots_RS.shape, -1, np.int32)
    leaf_L = np.arange(len(row_L)) - row_leaf_L
    slot_RS[row_L, leaf_L], leaf_RS[row_L, slot_L] = slot_L, leaf_L
    return Trie(
        token_RN=pad(token_N),
        parent_RN=pad(links.parent_N - row_node_N),
        depth_RN=pad(depth_N),
        level_RN=pad(links.level_N - row_node_N),
        first_child_RN=pad(links.first_child_N - row_node_N),
        num_children_RN=pad(links.num_children_N),
        run_RN=pad(run_N),
        first_leaf_RN=pad(leaf_N - row_leaf_N),
        last_leaf_RN=pad(last_leaf_N - row_leaf_N, fill=-1),
        slot_RS=slot_RS,
        leaf_RS=leaf_RS,
        max_children=to_power_of_two(int(links.num_children_N.max(initial=1)), 8),
        max_depth=to_multiple(int(depth_N.max(initial=1)), 8),
        root_run=to_power_of_two(int(run_N[depth_N == 0].max(initial=0))),
    )


def _sort_leaves(
    item_tokens: Ragged, row_L: np.ndarray, item_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts the leaves of each row by their tokens.

    A radix sort, one token position per iteration, over the leaves that are still tied.

    Args:
        item_tokens: the tokens of every item.
        row_L: the row of each leaf, ascending.
        item_L: the item of each leaf.

    Returns:
        The order, and for each position in it how many leading tokens that leaf shares with the
        previous one; -1 for the first leaf of a row.
    """
    lengths_L = item_tokens.lengths_R[item_L]
    if not lengths_L.all():
        raise ValueError(f"item {item_L[lengths_L.argmin()]} has no tokens")
    order_L = np.arange(len(row_L))
    tied_L = np.append(False, row_L[1:] == row_L[:-1])[: len(row_L)]  # with the previous leaf
    shared_L = np.where(tied_L, 0, -1)
    depth = 0
    while tied_L.any():
        index_T = np.flatnonzero(tied_L | np.append(tied_L[1:], False))
        group_T = np.cumsum(~tied_L)[index_T]
        leaf_T = order_L[index_T]
        ended_T = lengths_L[leaf_T] == depth
        if ended_T.any():
            whole = ended_T.argmax()
            group = np.flatnonzero(group_T == group_T[whole])
            longer = group[group != whole][0]
            raise ValueError(
                f"item {item_L[leaf_T[longer]]} begins with all tokens of item "
                f"{item_L[leaf_T[whole]]} in row {row_L[leaf_T[whole]]}"
            )
        token_T = item_tokens.values_N[item_tokens.offsets_R1[item_L[leaf_T]] + depth]
        sort_T = np.lexsort((token_T, group_T))
        order_L[index_T] = leaf_T[sort_T]
        token_T = token_T[sort_T]
        parted_T = np.append(True, token_T[1:] != token_T[:-1])
        tied_L[index_T[parted_T]] = False
        depth += 1
        shared_L[tied_L] = depth
    return order_L, shared_L


class _Links(NamedTuple):
    """The edges of all rows; indices are into the nodes of all rows."""

    parent_N: np.ndarray
    level_N: np.ndarray
    first_child_N: np.ndarray
    num_children_N: np.ndarray
    end_N: np.ndarray  # the last node of the subtree


def _link(row_N: np.ndarray, depth_N: np.ndarray) -> _Links:
    """Finds parents, children and subtrees from the depths alone, as the nodes are in preorder."""
    N = len(depth_N)
    node_N = np.arange(N)
    is_root_N = depth_N == 0
    # NumPy sorts small integers by radix.
    key_N = row_N * (depth_N.max(initial=0) + 1) + depth_N
    key_N = key_N.astype(np.min_scalar_type(key_N.max(initial=0)))
    level_N = np.argsort(key_N, kind="stable")

    # In this order siblings are adjacent, and the first of them directly follows its parent in
    # preorder. A root has no siblings.
    is_first_N = is_root_N | (depth_N > np.roll(depth_N, 1))
    start_G = np.flatnonzero(is_first_N[level_N])
    count_G = np.diff(np.append(start_G, N))
    first_G = level_N[start_G]
    parent_G = np.where(is_root_N[first_G], first_G, first_G - 1)
    parent_N = np.empty_like(node_N)
    parent_N[level_N] = np.repeat(parent_G, count_G)
    below_G = ~is_root_N[first_G]
    num_children_N, first_child_N = np.zeros_like(node_N), node_N.copy()
    num_children_N[parent_G[below_G]] = count_G[below_G]
    first_child_N[parent_G[below_G]] = start_G[below_G]

    # A subtree ends before the next sibling of its top, or of the nearest ancestor that has one
    # (the next root, for a root); pointer doubling finds it.
    after_N, root_G = node_N.copy(), np.flatnonzero(is_root_N)
    after_N[level_N[:-1]] = np.where(is_first_N[level_N[1:]], level_N[:-1], level_N[1:])
    after_N[root_G] = np.append(root_G[1:], N)
    top_N = np.where(after_N > node_N, node_N, parent_N)
    for _ in range(int(depth_N.max(initial=0)).bit_length()):
        top_N = top_N[top_N]
    return _Links(parent_N, level_N, first_child_N, num_children_N, after_N[top_N] - 1)


def _forced_runs(num_children_N: np.ndarray) -> np.ndarray:
    """The length of the run from each node to the next one that branches or is a leaf."""
    node_N = np.arange(len(num_children_N))
    stop_N = np.where(num_children_N == 1, len(node_N), node_N)
    return np.minimum.accumulate(stop_N[::-1])[::-1] - node_N
