"""The state of a beam search over a catalog's trie, and its transitions.

A hypothesis is a node of the trie; forced tokens are read together with the decided one. The
hypotheses of a row share its cache: the nodes they have read follow the committed tokens, in any
order. When an item is written, its tokens are read again in order and the other nodes are dropped.
Rows are independent: each may be in a different phase.

Shapes: S slots of the cache, X read nodes of a row (any nodes, in look-ups), W hypotheses, F
children of a node, P tokens of an item and of the root's forced run after it, Y excluded leaves, N
nodes.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from palr_jax.decoding.score import DEAD
from palr_jax.decoding.trie import Array, Trie
from palr_jax.llm.kv_cache import KVCache
from palr_jax.llm.llama import Llama


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SearchSpace:
    """What may be written; constant during a search.

    Attributes:
        trie: the trie that all rows share.
        excluded_BY: int32, ascending, the leaves that may not be written; padded with a number
            greater than any leaf.
        goal_B: int32, number of items to write.
    """

    trie: Trie
    excluded_BY: Array
    goal_B: Array

    def living(self, node_BX: jax.Array, written_BK: jax.Array) -> jax.Array:
        """Whether some leaf below each node may be written and is not written yet, bool [B, X]."""
        first_BX = jnp.asarray(self.trie.first_leaf_RN)[0, node_BX]
        last_BX = jnp.asarray(self.trie.last_leaf_RN)[0, node_BX]
        before, excluded_BY = jax.vmap(jnp.searchsorted), jnp.asarray(self.excluded_BY)
        excluded_BX = before(excluded_BY, last_BX + 1) - before(excluded_BY, first_BX)
        for leaf_B1 in jnp.split(written_BK, written_BK.shape[1], axis=1):
            excluded_BX += (first_BX <= leaf_B1) & (leaf_B1 <= last_BX)
        return last_BX + 1 - first_BX > excluded_BX


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beam:
    """The state of the search.

    Attributes:
        cache: keys and values of the committed tokens, followed by those of read nodes.
        node_BX: int32, the read nodes in the slots after the committed tokens; -1 in free slots.
        hidden_BWD: hidden state at the last token that each hypothesis has read.
        at_BW: int32, the node where each hypothesis decides next; a leaf if it is complete.
        logp_BW: log-probability of each hypothesis, best first; -inf for an unused one.
        next_BW: int32, the next node to read; in a row that is reading an item, an index into
            `path_BP`.
        left_BW: int32, number of nodes still to read.
        path_BP: int32, the nodes of the item being read, then those of the root's forced run.
        commits_B: bool, whether the row is reading a written item.
        leaf_BK: int32, the leaves written; -1 after the last.
        logp_BK: their log-probabilities; -inf after the last.
        count_B: int32, number of items written.
        passes: int32, sequential forward passes so far.
    """

    cache: KVCache
    node_BX: jax.Array
    hidden_BWD: jax.Array
    at_BW: jax.Array
    logp_BW: jax.Array
    next_BW: jax.Array
    left_BW: jax.Array
    path_BP: jax.Array
    commits_B: jax.Array
    leaf_BK: jax.Array
    logp_BK: jax.Array
    count_B: jax.Array
    passes: jax.Array


def decide(model: Llama, head_VD: jax.Array, space: SearchSpace, beam: Beam) -> Beam:
    """Extends every hypothesis by one branch, in the rows with no nodes left to read.

    `head_VD` is the LM head of the model.
    """
    trie = space.trie
    B, W = beam.at_BW.shape
    child_BWF, is_child_BWF = _children(trie, beam.at_BW)
    F = child_BWF.shape[2]
    living_BWF = space.living(child_BWF.reshape(B, -1), beam.leaf_BK).reshape(B, W, F)
    # A complete hypothesis stays unchanged: it counts as its own first child.
    done_BW1 = is_leaf(trie, beam.at_BW)[:, :, None]
    open_BWF = jnp.where(done_BW1, jnp.arange(F) == 0, is_child_BWF & living_BWF)
    token_BWF = jnp.asarray(trie.token_RN)[0, child_BWF]
    logit_BWF = _logits(model, head_VD, beam.hidden_BWD, token_BWF)
    logit_BWF = jnp.where(open_BWF, logit_BWF, DEAD)
    step_BWF = jnp.where(done_BW1, 0.0, jax.nn.log_softmax(logit_BWF))
    logp_BWF = beam.logp_BW[:, :, None] + step_BWF
    # Masked last, so that no closed branch is taken even if the model returns NaN.
    logp_BWF = jnp.where(open_BWF, logp_BWF, -jnp.inf)
    logp_BW, choice_BW = jax.lax.top_k(logp_BWF.reshape(B, -1), W)
    parent_BW = choice_BW // F

    def inherit(values_BW: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_BW, parent_BW, axis=1)

    child_BW = jnp.take_along_axis(child_BWF.reshape(B, -1), choice_BW, axis=1)
    stays_BW = inherit(done_BW1[:, :, 0]) | (logp_BW == -jnp.inf)
    run_BW = jnp.asarray(trie.run_RN)[0, child_BW]
    at_BW = jnp.where(stays_BW, inherit(beam.at_BW), child_BW + run_BW)
    # With a single leaf below, the rest of the item is forced and need not be read.
    settled_BW = stays_BW | is_leaf(trie, at_BW)
    decides_B1 = ((beam.left_BW.sum(axis=1) == 0) & (beam.count_B < space.goal_B))[:, None]
    return replace(
        beam,
        at_BW=jnp.where(decides_B1, at_BW, beam.at_BW),
        logp_BW=jnp.where(decides_B1, logp_BW, beam.logp_BW),
        next_BW=jnp.where(decides_B1, child_BW, beam.next_BW),
        left_BW=jnp.where(decides_B1, jnp.where(settled_BW, 0, 1 + run_BW), beam.left_BW),
        commits_B=beam.commits_B & ~decides_B1[:, 0],
    )


def write_best(space: SearchSpace, beam: Beam) -> Beam:
    """Writes the best hypothesis of every row if it is complete; its tokens are read next."""
    trie, K = space.trie, beam.leaf_BK.shape[1]
    writes_B = is_leaf(trie, beam.at_BW[:, 0]) & (beam.count_B < space.goal_B)
    here_BK = writes_B[:, None] & (jnp.arange(K) == beam.count_B[:, None])
    leaf_B1 = jnp.asarray(trie.first_leaf_RN)[0, beam.at_BW[:, :1]]
    count_B = beam.count_B + writes_B
    path_BP, length_B = _path(trie, beam.at_BW[:, 0], beam.path_BP.shape[1])
    left_B = jnp.where(count_B < space.goal_B, length_B, 0)
    is_first_W = jnp.arange(beam.at_BW.shape[1]) == 0
    writes_B1 = writes_B[:, None]
    return replace(
        beam,
        at_BW=jnp.where(writes_B1, root_run(trie), beam.at_BW),
        logp_BW=jnp.where(writes_B1, jnp.where(is_first_W, 0.0, -jnp.inf), beam.logp_BW),
        next_BW=jnp.where(writes_B1, 0, beam.next_BW),
        left_BW=jnp.where(writes_B1, is_first_W * left_B[:, None], beam.left_BW),
        path_BP=jnp.where(writes_B1, path_BP, beam.path_BP),
        commits_B=beam.commits_B | writes_B,
        leaf_BK=jnp.where(here_BK, leaf_B1, beam.leaf_BK),
        logp_BK=jnp.where(here_BK, beam.logp_BW[:, :1], beam.logp_BK),
        count_B=count_B,
    )


def _path(trie: Trie, leaf_B: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """The nodes from the end of the root's forced run to each leaf, then that run again.

    The run before the item is already committed.

    Returns:
        The nodes, int32 [B, P], and how many they are, [B].
    """
    parent_N, depth_N = jnp.asarray(trie.parent_RN)[0], jnp.asarray(trie.depth_RN)[0]
    run = root_run(trie)
    length_B = depth_N[leaf_B] - run
    index_P = jnp.arange(width)

    def up(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node_B, path_BP = state
        here_BP = index_P == (depth_N[node_B] - run - 1)[:, None]
        return parent_N[node_B], jnp.where(here_BP, node_B[:, None], path_BP)

    again_BP = index_P - length_B[:, None] + 1
    _, path_BP = jax.lax.fori_loop(0, trie.max_depth, up, (leaf_B, again_BP))
    return jnp.maximum(path_BP, 0), length_B + run


def _children(trie: Trie, at_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The children of each node, [B, W, F], and a mask of the F that exist."""
    offset_F = jnp.arange(trie.max_children)
    is_child_BWF = offset_F < jnp.asarray(trie.num_children_RN)[0, at_BW][:, :, None]
    index_BWF = jnp.asarray(trie.first_child_RN)[0, at_BW][:, :, None] + offset_F
    return jnp.asarray(trie.level_RN)[0, jnp.where(is_child_BWF, index_BWF, 0)], is_child_BWF


def _logits(
    model: Llama, head_VD: jax.Array, hidden_BWD: jax.Array, token_BWF: jax.Array
) -> jax.Array:
    """Logits of the given next tokens of each hypothesis, [B, W, F]."""
    # Gathering rows of the LM head moves less memory than a full product only if they are few.
    if token_BWF.size >= len(head_VD):
        return jnp.take_along_axis(model.logits(hidden_BWD, head_VD), token_BWF, axis=2)
    head_BWFD = head_VD[token_BWF]
    return jnp.einsum("BWD,BWFD->BWF", hidden_BWD, head_BWFD, preferred_element_type=jnp.float32)


def is_above(trie: Trie, upper_BX: jax.Array, lower_BY: jax.Array) -> jax.Array:
    """Whether each upper node equals each lower one or is its ancestor, [B, X, Y]; never for -1."""
    first_N, last_N = jnp.asarray(trie.first_leaf_RN)[0], jnp.asarray(trie.last_leaf_RN)[0]
    depth_N = jnp.asarray(trie.depth_RN)[0]
    upper_BX1, lower_B1Y = upper_BX[:, :, None], lower_BY[:, None]
    return (
        (first_N[upper_BX1] <= first_N[lower_B1Y])
        & (last_N[lower_B1Y] <= last_N[upper_BX1])
        & (depth_N[upper_BX1] <= depth_N[lower_B1Y])
        & (upper_BX1 >= 0)
    )


def is_leaf(trie: Trie, node_BX: jax.Array) -> jax.Array:
    """Whether each node is a leaf: a complete item."""
    return jnp.asarray(trie.num_children_RN)[0, node_BX] == 0


def root_run(trie: Trie) -> jax.Array:
    """Number of tokens that all items begin with."""
    return jnp.asarray(trie.run_RN)[0, 0]
