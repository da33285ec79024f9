"""What a pass that scores the candidates of many users reads and decides, planned in NumPy.

Shapes: M fed nodes, E edges (children of nodes that branch), S slots, N nodes of a trie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from palr_jax.decoding.trie import Array, Trie
from palr_jax.padding import to_multiple, to_power_of_two


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choices:
    """The choices of a batch of tries.

    Attributes:
        source_BE: int32, the choice that each edge belongs to; -1 at padding.
        first_BE: int32, the first leaf below the edge.
        last_BE: int32, the last leaf below the edge; -1 at padding.
        leaf_BS: int32, the leaf of each slot; -1 in empty slots.
        count: upper bound of the choices in a row: sources are below it.
    """

    source_BE: Array
    first_BE: Array
    last_BE: Array
    leaf_BS: Array
    count: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScorePlan:
    """Which nodes to feed and where to decide, for tries of a few hundred candidates each.

    Attributes:
        token_BM: int32, the nodes to feed, in preorder.
        depth_BM: int32, their depths; 0 at padding.
        horizon_BM: int32, the last fed node below each (itself if no other); -1 at padding.
        edge_token_BE: int32, the token of each edge.
        edge_source_BE: int32, where it is decided: 0 after the prompt, m + 1 after fed node m,
            -1 at padding.
        edge_first_BE: int32, the first leaf below the edge.
        edge_last_BE: int32, the last leaf below the edge; -1 at padding.
        leaf_BS: int32, the leaf of each slot; -1 in empty slots.
        end_BS: int32, the fed node that ends the text of each slot; -1 if it is not fed.
    """

    token_BM: Array
    depth_BM: Array
    horizon_BM: Array
    edge_token_BE: Array
    edge_source_BE: Array
    edge_first_BE: Array
    edge_last_BE: Array
    leaf_BS: Array
    end_BS: Array

    def take(self, rows: np.ndarray) -> "ScorePlan":
        """The plan of the given rows, in the given order."""
        plan: ScorePlan = jax.tree.map(lambda array: array[rows], self)
        return plan

    def padded(self, sizes: "Sizes") -> "ScorePlan":
        """The same plan with axes of these sizes, which must have room for it."""
        fed = sizes.fed - self.token_BM.shape[1]
        edges = sizes.edges - self.edge_token_BE.shape[1]

        def pad(array: Array, more: int, fill: int) -> np.ndarray:
            return np.pad(np.asarray(array), ((0, 0), (0, more)), constant_values=fill)

        return replace(
            self,
            token_BM=pad(self.token_BM, fed, 0),
            depth_BM=pad(self.depth_BM, fed, 0),
            horizon_BM=pad(self.horizon_BM, fed, -1),
            edge_token_BE=pad(self.edge_token_BE, edges, 0),
            edge_source_BE=pad(self.edge_source_BE, edges, -1),
            edge_first_BE=pad(self.edge_first_BE, edges, 0),
            edge_last_BE=pad(self.edge_last_BE, edges, -1),
        )

    def in_order(self, order_BS: np.ndarray) -> "ScorePlan":
        """The plan for the same candidates in other slots: slot s holds that of `order_BS[s]`."""
        return replace(
            self,
            leaf_BS=np.take_along_axis(np.asarray(self.leaf_BS), order_BS, axis=1),
            end_BS=np.take_along_axis(np.asarray(self.end_BS), order_BS, axis=1),
        )

    @property
    def choices(self) -> Choices:
        """The choices at the root (choice 0) and at the fed nodes (choice m + 1)."""
        return Choices(
            self.edge_source_BE,
            self.edge_first_BE,
            self.edge_last_BE,
            self.leaf_BS,
            count=self.token_BM.shape[1] + 1,
        )


@dataclass(frozen=True)
class Sizes:
    """The axes of a plan; batches of the same sizes share a compiled program.

    Attributes:
        fed: M, nodes to feed.
        edges: E.
        depth: C, tokens of an item.
    """

    fed: int = 8
    edges: int = 8
    depth: int = 8

    def cover(self, other: "Sizes") -> "Sizes":
        """The smallest sizes with room for both."""
        return Sizes(
            max(self.fed, other.fed), max(self.edges, other.edges), max(self.depth, other.depth)
        )

    def rounded(self) -> "Sizes":
        """Larger sizes, of which there are few: calls of different users share programs."""
        return replace(self, fed=to_power_of_two(self.fed, 8))


def sizes_of(trie: Trie, whole: bool = False) -> Sizes:
    """The smallest sizes with room for every row of a trie; the cost of a pass grows with them.

    Args:
        trie: any number of rows.
        whole: see `plan_score`.
    """
    is_fed_RN, is_edge_RN = _fed(trie, whole), _edges(trie)
    return Sizes(
        fed=to_multiple(max(1, int(is_fed_RN.sum(axis=1).max(initial=0))), 8),
        edges=to_power_of_two(max(1, int(is_edge_RN.sum(axis=1).max(initial=0))), 8),
        depth=trie.max_depth,
    )


def _fed(trie: Trie, whole: bool) -> np.ndarray:
    """The nodes to feed, bool [R, N]: those with two leaves below, which branch or lead to one."""
    first_RN, last_RN = np.asarray(trie.first_leaf_RN), np.asarray(trie.last_leaf_RN)
    has_two_RN = last_RN >= first_RN if whole else last_RN > first_RN
    return (np.asarray(trie.depth_RN) > 0) & has_two_RN


def _edges(trie: Trie) -> np.ndarray:
    """The children of nodes that branch, bool [R, N]."""
    num_children_RN = np.asarray(trie.num_children_RN)
    siblings_RN = np.take_along_axis(num_children_RN, np.asarray(trie.parent_RN), axis=1)
    return (np.asarray(trie.depth_RN) > 0) & (siblings_RN > 1)


def plan_score(trie: Trie, sizes: Sizes | None = None, whole: bool = False) -> ScorePlan:
    """Plans on the host, in NumPy, how to score the tries of a batch of rows.

    Args:
        trie: one per row.
        sizes: axes of the plan; they must have room for the trie. By default the smallest.
        whole: feed all nodes, for a model that reads the whole text of every candidate.
    """
    sizes = sizes or sizes_of(trie, whole)
    first_BN, last_BN = np.asarray(trie.first_leaf_RN), np.asarray(trie.last_leaf_RN)
    depth_BN, parent_BN = np.asarray(trie.depth_RN), np.asarray(trie.parent_RN)
    token_BN = np.asarray(trie.token_RN)

    is_fed_BN = _fed(trie, whole)
    source_BN = np.where(is_fed_BN, np.cumsum(is_fed_BN, axis=1), 0)
    fed_BM = _indices(is_fed_BN, sizes.fed)
    edge_BE = _indices(_edges(trie), sizes.edges)

    # A subtree is a range of leaves: a later fed node is below this one if its first leaf is.
    start_BM = _pick(first_BN, fed_BM, fill=np.iinfo(np.int32).max)
    stop_BM = _pick(last_BN, fed_BM, fill=-1)
    horizon_BM = (start_BM[:, None, :] <= stop_BM[:, :, None]).sum(-1, dtype=np.int32) - 1

    return ScorePlan(
        token_BM=_pick(token_BN, fed_BM, fill=0),
        depth_BM=_pick(depth_BN, fed_BM, fill=0),
        horizon_BM=horizon_BM,
        edge_token_BE=_pick(token_BN, edge_BE, fill=0),
        edge_source_BE=_pick(np.take_along_axis(source_BN, parent_BN, axis=1), edge_BE, fill=-1),
        edge_first_BE=_pick(first_BN, edge_BE, fill=0),
        edge_last_BE=_pick(last_BN, edge_BE, fill=-1),
        leaf_BS=np.asarray(trie.leaf_RS),
        end_BS=_ends(trie, source_BN) - 1,
    )


def join(plans: Sequence[ScorePlan]) -> ScorePlan:
    """The plan of the rows of several plans of one size, at least one, one after the other."""
    joined: ScorePlan = jax.tree.map(lambda *arrays: np.concatenate(arrays), *plans)
    return joined


def _ends(trie: Trie, fed_BN: np.ndarray) -> np.ndarray:
    """The fed node that ends the text of each slot, counted from 1, [B, S]; 0 if it is not fed.

    Args:
        trie: one per row.
        fed_BN: index of each node among the fed ones, counted from 1; 0 for the others.
    """
    leaf_BS = np.asarray(trie.leaf_RS)
    ends_BN = (np.asarray(trie.num_children_RN) == 0) & (np.asarray(trie.last_leaf_RN) >= 0)
    by_leaf_BS = np.zeros(leaf_BS.shape, np.int32)
    row, node = np.nonzero(ends_BN & (np.asarray(trie.depth_RN) > 0))
    by_leaf_BS[row, np.asarray(trie.first_leaf_RN)[row, node]] = fed_BN[row, node]
    return np.where(leaf_BS >= 0, np.take_along_axis(by_leaf_BS, np.maximum(leaf_BS, 0), 1), 0)


def _indices(mask_BN: np.ndarray, width: int) -> np.ndarray:
    """The indices where a mask is true, [B, width]; padded on the right with -1."""
    row, node = np.nonzero(mask_BN)
    column = np.cumsum(mask_BN, axis=1)[row, node] - 1
    index_BX = np.full((len(mask_BN), width), -1)
    index_BX[row, column] = node
    return index_BX


def _pick(values_BN: np.ndarray, index_BX: np.ndarray, fill: int) -> np.ndarray:
    """The values at the given indices of each row, int32 [B, X]; `fill` where the index is -1."""
    values_BX = np.take_along_axis(values_BN, index_BX, axis=1)
    return np.where(index_BX >= 0, values_BX, fill).astype(np.int32)
