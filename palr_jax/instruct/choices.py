"""The choices on the path to one of several candidates, for training.

Ranking evaluates all choices of a trie; the probability of one item depends only on those along its
own path. So training feeds a few tokens per moment instead of the whole trie, unless the ranker
reads the whole text of every candidate.

Shapes: W tokens of the longest candidate, E edges, F fed tokens, P fed tokens on the path to the
target, G groups of candidates that share a prefix.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class PathChoices:
    """The choices on the path to a target.

    Attributes:
        order_C: the candidates in the order of the leaves of their trie.
        target: the leaf of the target.
        fed_F: int32, the tokens to feed.
        depth_F: int32, depth of each fed token in the trie, from 1.
        horizon_F: int32, the last fed token below each (itself if no other).
        path_P: int32, indices of the target's tokens among the fed ones.
        end_C: int32, index of the last token of each leaf among them; -1 if it is not fed.
        token_E: int32, the token of each edge.
        source_E: int32, the choice that the edge belongs to, from 0 along the path.
        depth_E: int32, number of tokens of the target before the choice.
        first_E: int32, the first leaf below the edge.
        last_E: int32, the last leaf below it.
    """

    order_C: np.ndarray
    target: int
    fed_F: np.ndarray
    depth_F: np.ndarray
    horizon_F: np.ndarray
    path_P: np.ndarray
    end_C: np.ndarray
    token_E: np.ndarray
    source_E: np.ndarray
    depth_E: np.ndarray
    first_E: np.ndarray
    last_E: np.ndarray


def path_choices(
    items: Ragged, candidates_C: np.ndarray, target: int, whole: bool = False
) -> PathChoices:
    """Finds the choices that lead to candidate number `target`.

    Args:
        items: the tokens of every item; no item is a prefix of another.
        candidates_C: distinct items, at least one.
        target: index into `candidates_C`.
        whole: feed the whole trie instead of only the nodes that the choices need.
    """
    length_C = items.lengths_R[candidates_C]
    padded_CW = np.full((len(candidates_C), int(length_C.max())), -1, np.int32)
    padded_CW[np.arange(padded_CW.shape[1]) < length_C[:, None]] = items.join(candidates_C)
    order_C = np.lexsort(padded_CW.T[::-1])
    sorted_CW = padded_CW[order_C]
    leaf = int(np.flatnonzero(order_C == target)[0])
    start, stop, depth, source = 0, len(order_C), 0, 0
    edges: list[np.ndarray] = []
    while stop - start > 1:
        token_G = sorted_CW[start:stop, depth]
        first_G = start + np.flatnonzero(np.append(True, token_G[1:] != token_G[:-1]))
        end_G = np.append(first_G[1:], stop)
        if len(first_G) > 1:
            same_G = np.ones_like(first_G)
            edges.append(
                np.stack(
                    [token_G[first_G - start], source * same_G, depth * same_G, first_G, end_G - 1]
                )
            )
            source += 1
        group = int(np.searchsorted(first_G, leaf, side="right")) - 1
        start, stop, depth = int(first_G[group]), int(end_G[group]), depth + 1
    table_5E = np.concatenate([np.zeros((5, 0), np.int32), *edges], axis=1).astype(np.int32)
    if whole:
        return PathChoices(order_C, leaf, *_whole_trie(sorted_CW, leaf), *table_5E)
    fed = int(table_5E[2].max(initial=0))
    path_P = np.arange(fed, dtype=np.int32)
    end_C = np.full(len(order_C), -1, np.int32)
    chain = (sorted_CW[leaf, :fed], path_P + 1, np.full(fed, fed - 1, np.int32), path_P, end_C)
    return PathChoices(order_C, leaf, *chain, *table_5E)


def _whole_trie(sorted_CW: np.ndarray, leaf: int) -> tuple[np.ndarray, ...]:
    """All nodes in preorder: `fed_F` to `end_C` of `PathChoices`.

    Args:
        sorted_CW: the tokens of the leaves in order, padded with -1.
        leaf: the end of the path.
    """
    length_C = (sorted_CW >= 0).sum(axis=1)
    differs_CW = sorted_CW[1:] != sorted_CW[:-1]
    shared_C = np.append(0, differs_CW.argmax(axis=1))  # tokens shared with the previous leaf
    # A leaf adds the nodes that it does not share with the previous one.
    fresh_C = length_C - shared_C
    start_C1 = np.append(0, np.cumsum(fresh_C))
    leaf_F = np.repeat(np.arange(len(length_C)), fresh_C)
    depth_F = np.arange(len(leaf_F)) - start_C1[leaf_F] + shared_C[leaf_F] + 1
    # least_CC[i, j]: number of tokens that all leaves from i to j share. Leaf j is below a node of
    # leaf i if that is at least the depth of the node.
    later_CC = np.where(np.tri(len(length_C), dtype=bool), sorted_CW.shape[1], shared_C)
    least_CC = np.minimum.accumulate(later_CC, axis=1)
    inside_FC = (least_CC[leaf_F] >= depth_F[:, None]) & (
        np.arange(len(length_C)) > leaf_F[:, None]
    )
    last_F = leaf_F + inside_FC.sum(axis=1)
    on_path_F = (leaf_F <= leaf) & (leaf <= last_F)
    parts = (
        sorted_CW[leaf_F, depth_F - 1], depth_F, start_C1[last_F + 1] - 1,
        np.flatnonzero(on_path_F), start_C1[1:] - 1,
    )  # fmt: skip
    return tuple(part.astype(np.int32) for part in parts)
