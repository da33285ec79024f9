"""Writing the slate: item 1, then item 2 given item 1, … greedily, without repeats.

The model can only write items of the trie (paper, section 3.3: the LLM selects and orders 10).
The loop runs once per decision, not once per token: what a decision forces is read in one chunk
together with the decided token. Rows are independent; each is at its own stage.

Shapes: B rows, T prompt tokens, S slots or leaves, N nodes of a trie, F children of a node, C
tokens of a chunk, K items of the slate, D width, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.decoding.trie import Array, Trie
from palr_jax.llm.kv_cache import KVCache
from palr_jax.llm.llama import Llama

# A pass reads every weight and the whole cache, so it should read many tokens; but most of a wide
# chunk is padding. Forced runs that do not fit take another pass.
_TOKENS_PER_PASS = 512

# A finite floor keeps rows without a living child free of NaN.
_DEAD = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slate:
    """What was written.

    Attributes:
        slot_BK: int32, the slots of the items in the order written; -1 behind the last.
        logp_BK: float32, the log-probability of each item given the prompt and the items before,
            renormalised at every decision over what was still allowed; -inf behind the last.
        iterations: int32, forward passes after the one over the prompts.
    """

    slot_BK: jax.Array
    logp_BK: jax.Array
    iterations: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """Where each row stands.

    Attributes:
        hidden_BD: the output at the last token read.
        cache: keys and values of all tokens read.
        at_B: int32, the node of the next decision.
        next_B: int32, the next node to read before it.
        left_B: int32, how many nodes to read before it; 0 once the row is finished.
        logp_B: log-probability of the decisions within the present item.
        leaf_BK: int32, the leaves written; -1 behind the last.
        logp_BK: their log-probabilities; -inf behind the last.
        count_B: int32, how many are written.
        iterations: int32, chunks read.
    """

    hidden_BD: jax.Array
    cache: KVCache
    at_B: jax.Array
    next_B: jax.Array
    left_B: jax.Array
    logp_B: jax.Array
    leaf_BK: jax.Array
    logp_BK: jax.Array
    count_B: jax.Array
    iterations: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """The trie of each row and what may be written of it.

    Attributes:
        trie: one trie per row, or one for all.
        row_B: int32, the trie of each row.
        before_BS1: int32, how many allowed leaves come before each leaf, and in all.
        goal_B: int32, how many items to write.
    """

    trie: Trie
    row_B: jax.Array
    before_BS1: jax.Array
    goal_B: jax.Array

    def at(self, field_RN: Array, node: jax.Array) -> jax.Array:
        """A field of the trie at nodes [B] or [B, X] of each row."""
        row = self.row_B if node.ndim == 1 else self.row_B[:, None]
        return jnp.asarray(field_RN)[row, node]

    def alive(self, node_BF: jax.Array, written_BK: jax.Array) -> jax.Array:
        """Whether below each node stands an allowed leaf that is not written yet, [B, F]."""
        first_BF = self.at(self.trie.first_leaf_RN, node_BF)
        last_BF = self.at(self.trie.last_leaf_RN, node_BF)
        upto_BF = jnp.take_along_axis(self.before_BS1, last_BF + 1, axis=1)
        allowed_BF = upto_BF - jnp.take_along_axis(self.before_BS1, first_BF, axis=1)
        below_BFK = (first_BF[:, :, None] <= written_BK[:, None]) & (
            written_BK[:, None] <= last_BF[:, :, None]
        )
        return allowed_BF > below_BFK.sum(-1)


def generate(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    trie: Trie,
    allowed_BS: Array,
    k: int,
) -> Slate:
    """Writes the slate of every row.

    Args:
        model: the ranker.
        prompt_tokens_BT: int32, prompts padded on the right; widths in few sizes, since every
            width is compiled.
        prompt_length_B: int32, tokens of each prompt.
        trie: one trie per row, or one for all.
        allowed_BS: bool, the slots that may be written; a row without any costs no iteration.
        k: items to write; rows with fewer allowed write all of those.

    Raises:
        ValueError: the trie has neither one row nor one per prompt.
    """
    if len(trie.slot_RS) not in (1, len(prompt_length_B)):
        raise ValueError(f"{len(trie.slot_RS)} tries for {len(prompt_length_B)} prompts")
    chunk = min(trie.max_depth, max(8, _TOKENS_PER_PASS // len(prompt_length_B)))
    graph, weights = nnx.split(model)
    return _generate(graph, weights, prompt_tokens_BT, prompt_length_B, trie, allowed_BS, k, chunk)


@partial(jax.jit, static_argnums=(0, 6, 7))
def _generate(
    graph: nnx.GraphDef,
    weights: nnx.State,
    prompt_tokens_BT: jax.Array,
    prompt_length_B: jax.Array,
    trie: Trie,
    allowed_BS: jax.Array,
    k: int,
    chunk: int,
) -> Slate:
    model = nnx.merge(graph, weights)
    rows = _rows(trie, allowed_BS, k)
    state = _decide(model, rows, _start(model, rows, prompt_tokens_BT, prompt_length_B, k, chunk))

    def unfinished(state: _State) -> jax.Array:
        return jnp.any(state.count_B < rows.goal_B)

    def step(state: _State) -> _State:
        return _decide(model, rows, _read(model, rows, state, chunk))

    state = jax.lax.while_loop(unfinished, step, state)
    slot_BK = jnp.asarray(trie.slot_RS)[rows.row_B[:, None], state.leaf_BK]
    return Slate(
        slot_BK=jnp.where(state.leaf_BK >= 0, slot_BK, -1),
        logp_BK=state.logp_BK,
        iterations=state.iterations,
    )


def _rows(trie: Trie, allowed_BS: jax.Array, k: int) -> _Rows:
    B, R = len(allowed_BS), len(trie.slot_RS)
    row_B = jnp.arange(B) if R == B else jnp.zeros(B, jnp.int32)
    slot_RS = jnp.asarray(trie.slot_RS)
    leaf_allowed_BS = (slot_RS >= 0) & allowed_BS[jnp.arange(B)[:, None], slot_RS]
    before_BS = jnp.cumsum(leaf_allowed_BS, axis=1, dtype=jnp.int32)
    before_BS1 = jnp.pad(before_BS, ((0, 0), (1, 0)))
    return _Rows(trie, row_B, before_BS1, goal_B=jnp.minimum(k, before_BS1[:, -1]))


def _start(
    model: Llama,
    rows: _Rows,
    prompt_tokens_BT: jax.Array,
    length_B: jax.Array,
    k: int,
    chunk: int,
) -> _State:
    """Reads the prompts, each with the forced run of its root behind it."""
    B, T = prompt_tokens_BT.shape
    trie, root_B = rows.trie, jnp.zeros(B, jnp.int32)
    run_B = rows.at(trie.run_RN, root_B)
    tokens_BT = jnp.pad(prompt_tokens_BT, ((0, 0), (0, trie.root_run)))
    behind_BT = jnp.arange(T + trie.root_run) - length_B[:, None] + 1
    forced_BT = rows.at(trie.token_RN, jnp.clip(behind_BT, 0, trie.token_RN.shape[1] - 1))
    is_forced_BT = (behind_BT > 0) & (behind_BT <= run_B[:, None])
    length_B = length_B + run_B
    hidden_BTD, cache = model.prefill(jnp.where(is_forced_BT, forced_BT, tokens_BT), length_B)
    # The last chunk may write rubbish behind the last item.
    cache = cache.pad_to(T + k * trie.max_depth + chunk)
    return _State(
        hidden_BD=_last(hidden_BTD, length_B),
        cache=cache,
        at_B=run_B,
        next_B=root_B,
        left_B=root_B,
        logp_B=jnp.zeros(B),
        leaf_BK=jnp.full((B, k), -1),
        logp_BK=jnp.full((B, k), -jnp.inf),
        count_B=root_B,
        iterations=jnp.int32(0),
    )


def _last(hidden_BTD: jax.Array, count_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden_BTD, count_B[:, None, None] - 1, axis=1)[:, 0]


def _read(model: Llama, rows: _Rows, state: _State, chunk: int) -> _State:
    """Reads up to `chunk` of the nodes that stand before the next decision.

    They follow each other in preorder, and behind a leaf comes the first child of the root.
    """
    stop_B = state.next_B + rows.at(rows.trie.run_RN, state.next_B)

    def wrap(node: jax.Array, stop: jax.Array) -> jax.Array:
        return jnp.where(node > stop, node - stop, node)

    node_BC = wrap(state.next_B[:, None] + jnp.arange(chunk), stop_B[:, None])
    count_B = jnp.minimum(state.left_B, chunk)
    tokens_BC = rows.at(rows.trie.token_RN, node_BC)
    hidden_BCD, cache = model.extend(tokens_BC, count_B, state.cache)
    return replace(
        state,
        hidden_BD=jnp.where(count_B[:, None] > 0, _last(hidden_BCD, count_B), state.hidden_BD),
        cache=cache,
        next_B=wrap(state.next_B + count_B, stop_B),
        left_B=state.left_B - count_B,
        iterations=state.iterations + 1,
    )


def _decide(model: Llama, rows: _Rows, state: _State) -> _State:
    """Goes down one branch in every row that has read all it had to."""
    trie = rows.trie
    child_BF, is_child_BF = _children(rows, state.at_B)
    alive_BF = is_child_BF & rows.alive(child_BF, state.leaf_BK)
    logit_BF = _logits(model, state.hidden_BD, rows.at(trie.token_RN, child_BF))
    logp_BF = jax.nn.log_softmax(jnp.where(alive_BF, logit_BF, _DEAD))
    choice_B1 = jnp.argmax(logp_BF, axis=1, keepdims=True)
    node_B = jnp.take_along_axis(child_BF, choice_B1, axis=1)[:, 0]
    logp_B = state.logp_B + jnp.take_along_axis(logp_BF, choice_B1, axis=1)[:, 0]

    decides_B = (state.left_B == 0) & (state.count_B < rows.goal_B)
    run_B, root_run_B = rows.at(trie.run_RN, node_B), rows.at(trie.run_RN, jnp.zeros_like(node_B))
    leaf_B = rows.at(trie.first_leaf_RN, node_B)
    # With one leaf below, all the rest of the item is forced.
    writes_B = decides_B & (leaf_B == rows.at(trie.last_leaf_RN, node_B))
    count_B = state.count_B + writes_B
    here_BK = writes_B[:, None] & (jnp.arange(state.leaf_BK.shape[1]) == state.count_B[:, None])
    left_B = jnp.where(writes_B, 1 + run_B + root_run_B, 1 + run_B)
    return replace(
        state,
        at_B=jnp.where(decides_B, jnp.where(writes_B, root_run_B, node_B + run_B), state.at_B),
        next_B=jnp.where(decides_B, node_B, state.next_B),
        left_B=jnp.where(decides_B, jnp.where(count_B < rows.goal_B, left_B, 0), state.left_B),
        logp_B=jnp.where(decides_B, jnp.where(writes_B, 0.0, logp_B), state.logp_B),
        leaf_BK=jnp.where(here_BK, leaf_B[:, None], state.leaf_BK),
        logp_BK=jnp.where(here_BK, logp_B[:, None], state.logp_BK),
        count_B=count_B,
    )


def _children(rows: _Rows, at_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The children of a node of each row, [B, F], and which of the F are there."""
    trie = rows.trie
    offset_F = jnp.arange(trie.max_children)
    is_child_BF = offset_F < rows.at(trie.num_children_RN, at_B)[:, None]
    place_BF = rows.at(trie.first_child_RN, at_B)[:, None] + offset_F
    child_BF = rows.at(trie.level_RN, jnp.where(is_child_BF, place_BF, 0))
    return child_BF, is_child_BF


def _logits(model: Llama, hidden_BD: jax.Array, tokens_BF: jax.Array) -> jax.Array:
    """Logits of some tokens of each row, [B, F]."""
    # Gathering B · F rows of the LM head moves less memory than reading all V of it, or more.
    if tokens_BF.size >= model.config.vocab_size:
        return jnp.take_along_axis(model.logits(hidden_BD), tokens_BF, axis=1)
    head_BFD = model.head_weights()[tokens_BF]
    return jnp.einsum("BD,BFD->BF", hidden_BD, head_BFD, preferred_element_type=jnp.float32)
