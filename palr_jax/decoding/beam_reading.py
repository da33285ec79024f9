"""The forward passes of a search: over nodes of the trie, or over an item that was written.

Shapes: as in `palr_jax.decoding.beam`; Q tokens of a pass.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from palr_jax.decoding.beam import Beam, SearchSpace, is_above, is_leaf, root_run
from palr_jax.llm.kv_cache import View, scatter
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import Prefix


def start(
    model: Llama,
    space: SearchSpace,
    prompt_tokens_BT: jax.Array,
    length_B: jax.Array,
    k: int,
    width: int,
    tokens: int,
    prefix: Prefix,
) -> Beam:
    """Reads the prompts, each followed by the forced run of the root."""
    B, T = prompt_tokens_BT.shape
    trie, W = space.trie, width
    run = root_run(trie)
    tokens_BT = jnp.pad(prompt_tokens_BT, ((0, 0), (0, trie.root_run)))
    after_BT = jnp.arange(T + trie.root_run) - length_B[:, None] + 1
    forced_BT = jnp.asarray(trie.token_RN)[0, jnp.clip(after_BT, 0, trie.root_run)]
    tokens_BT = jnp.where((after_BT > 0) & (after_BT <= run), forced_BT, tokens_BT)
    length_B = length_B + run
    item = trie.max_depth + trie.root_run
    # The ancestors of W hypotheses and the tokens of one pass.
    room = W * trie.max_depth + tokens
    hidden_BTD, cache = model.prefill(
        tokens_BT, length_B, slots=T + trie.root_run + k * item + room, prefix=prefix
    )
    last_B1D = jnp.take_along_axis(hidden_BTD, length_B[:, None, None] - 1, axis=1)
    zeros_BW = jnp.zeros((B, W), jnp.int32)
    return Beam(
        cache=cache,
        node_BX=jnp.full((B, room), -1, jnp.int32),
        hidden_BWD=jnp.repeat(last_B1D, W, axis=1),
        at_BW=zeros_BW + run,
        logp_BW=jnp.full((B, W), -jnp.inf).at[:, 0].set(0.0),
        next_BW=zeros_BW,
        left_BW=zeros_BW,
        path_BP=jnp.zeros((B, item), jnp.int32),
        commits_B=jnp.zeros(B, bool),
        leaf_BK=jnp.full((B, k), -1, jnp.int32),
        logp_BK=jnp.full((B, k), -jnp.inf),
        count_B=jnp.zeros(B, jnp.int32),
        passes=jnp.int32(1),
    )


def read_nodes(model: Llama, space: SearchSpace, beam: Beam, tokens: int) -> Beam:
    """Reads up to `tokens` of the nodes that precede the next decision of each row."""
    # The tokens of a pass are allotted to the hypotheses in order, as many as each needs.
    before_BW = jnp.cumsum(beam.left_BW, axis=1) - beam.left_BW
    taken_BW = jnp.clip(tokens - before_BW, 0, beam.left_BW)
    index_Q = jnp.arange(tokens)
    lane_BQ = (before_BW[:, :, None] <= index_Q).sum(axis=1) - 1
    index_BQ = index_Q + jnp.take_along_axis(beam.next_BW - before_BW, lane_BQ, axis=1)
    on_path_BQ = jnp.clip(index_BQ, 0, beam.path_BP.shape[1] - 1)
    node_BQ = jnp.where(
        beam.commits_B[:, None],
        jnp.take_along_axis(beam.path_BP, on_path_BQ, axis=1),
        jnp.clip(index_BQ, 0, space.trie.token_RN.shape[1] - 1),
    )
    count_B = taken_BW.sum(axis=1)
    view, node_BX, slot_BQ = _view(space, beam, node_BQ, count_B)
    token_BQ = jnp.asarray(space.trie.token_RN)[0, node_BQ]
    committed_B = jnp.where(beam.commits_B, count_B, 0)
    hidden_BQD, new = model.read(token_BQ, beam.cache, view)
    last_BW = jnp.clip(before_BW + taken_BW - 1, 0, tokens - 1)
    last_BWD = jnp.take_along_axis(hidden_BQD, last_BW[:, :, None], axis=1)
    return replace(
        beam,
        cache=scatter(beam.cache, new, slot_BQ, committed_B),
        node_BX=node_BX,
        hidden_BWD=jnp.where(taken_BW[:, :, None] > 0, last_BWD, beam.hidden_BWD),
        next_BW=beam.next_BW + taken_BW,
        left_BW=beam.left_BW - taken_BW,
        passes=beam.passes + 1,
    )


def _view(
    space: SearchSpace, beam: Beam, node_BQ: jax.Array, count_B: jax.Array
) -> tuple[View, jax.Array, jax.Array]:
    """The view of the tokens of a pass, the next `node_BX`, and the slot of each token, [B, Q]."""
    cache, commits_B1 = beam.cache, beam.commits_B[:, None]
    B, Q = node_BQ.shape
    X = beam.node_BX.shape[1]
    index_Q = jnp.arange(Q)
    # A read node is kept while some open hypothesis is below it.
    is_open_BW = ~is_leaf(space.trie, beam.at_BW) & (beam.logp_BW > -jnp.inf) & ~commits_B1
    below_BXW = is_above(space.trie, beam.node_BX, beam.at_BW) & is_open_BW[:, None]
    kept_BX = below_BXW.any(-1)
    kept_node_BX = jnp.where(kept_BX, beam.node_BX, -1)
    free_BQ = jnp.argsort(kept_BX, axis=1)[:, :Q]
    fresh_BQ = jnp.where((index_Q < count_B[:, None]) & ~commits_B1, node_BQ, -1)
    node_BX = kept_node_BX.at[jnp.arange(B)[:, None], free_BQ].set(fresh_BQ)

    rank_BS = jnp.arange(cache.slots) - cache.length_B[:, None]
    slot_node_BS = jnp.take_along_axis(kept_node_BX, jnp.clip(rank_BS, 0, X - 1), axis=1)
    slot_node_BS = jnp.where(rank_BS < X, slot_node_BS, -1)
    is_above_BQS = jnp.swapaxes(is_above(space.trie, slot_node_BS, node_BQ), 1, 2)
    among_BQQ = jnp.swapaxes(is_above(space.trie, fresh_BQ, node_BQ), 1, 2)
    # Hypotheses start after the forced run of the root, which is committed.
    offset_BQ = jnp.asarray(space.trie.depth_RN)[0, node_BQ] - 1 - root_run(space.trie)
    start_B1 = cache.length_B[:, None]
    view = View(
        position_BT=start_B1 + jnp.where(commits_B1, index_Q, offset_BQ),
        visible_BUS=(rank_BS < 0)[:, None] | is_above_BQS & ~commits_B1[:, :, None],
        among_BTT=jnp.where(commits_B1[:, :, None], index_Q <= index_Q[:, None], among_BQQ),
    )
    return view, node_BX, start_B1 + jnp.where(commits_B1, index_Q, free_BQ)
