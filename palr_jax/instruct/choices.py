"""The choices that lead to one item among some candidates, for training.

Ranking looks at all choices of a trie; the probability of one item takes those on its own path
alone. So training feeds a few tokens a moment and not the whole trie.

Shapes: C candidates, W tokens of the longest candidate, E edges, F fed tokens.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class PathChoices:
    """The choices on the path to a target.

    Attributes:
        order_C: the candidates as the leaves of their trie stand.
        target: the leaf of the target.
        fed_F: int32, the tokens of the target up to its last choice.
        token_E: int32, the token of each edge.
        source_E: int32, the choice that it belongs to, from 0 down the path.
        depth_E: int32, how many tokens of the target stand before the choice.
        first_E: int32, the first leaf below the edge.
        last_E: int32, the last leaf below it.
    """

    order_C: np.ndarray
    target: int
    fed_F: np.ndarray
    token_E: np.ndarray
    source_E: np.ndarray
    depth_E: np.ndarray
    first_E: np.ndarray
    last_E: np.ndarray


def path_choices(items: Ragged, candidates_C: np.ndarray, target: int) -> PathChoices:
    """Finds the choices that lead to candidate number `target`.

    Args:
        items: the tokens of every item; none begins with all tokens of another.
        candidates_C: distinct items, at least one.
        target: index into `candidates_C`.
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
    fed = int(table_5E[2].max(initial=0))
    return PathChoices(order_C, leaf, sorted_CW[leaf, :fed], *table_5E)
