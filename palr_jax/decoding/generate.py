"""Writing the slate: item 1, then item 2 given item 1, … without repeats.

The model can write candidates only (paper, section 2.1: "select the items from the candidates
pool"). Each item takes one forward pass. It reads the tokens of the item just written and, as
`score` does, all nodes of the trie where the next item can branch; that gives the probability of
every remaining candidate as the next item. A slate of ten items takes ten passes, however long the
titles of the candidates are.

Shapes: S slots, M fed nodes, E edges, C tokens of an item.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.decoding.score import DEAD, above, edge_logits, path_logps, siblings, tree_layout
from palr_jax.decoding.score_plan import Choices, ScorePlan, Sizes, plan_score, sizes_of
from palr_jax.decoding.trie import Array, Trie
from palr_jax.llm.kv_cache import KVCache, view_after
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import NO_PREFIX, Prefix
from palr_jax.trees import State

# greedy takes the best token at every choice, beam the best item, sample draws tokens.
Mode = Literal["greedy", "beam", "sample"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slate:
    """The slate of every row.

    Attributes:
        slot_BK: int32, the slots of the items in the order written; -1 after the last.
        logp_BK: float32, the log-probability of each item given the prompt and the items before
            it, renormalised at every choice over the items still allowed; -inf after the last.
        passes: int32, sequential forward passes, including the one over the prompts.
    """

    slot_BK: jax.Array
    logp_BK: jax.Array
    passes: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Plan:
    """Inputs that stay constant while the slate is written.

    Attributes:
        score: the nodes to feed and the edges.
        text_BSC: int32, the tokens of each slot.
        count_BS: int32, how many tokens each slot has.
        goal_B: int32, number of items to write.
        temperature: divides the logits when sampling.
        key_B: one random key per row.
    """

    score: ScorePlan
    text_BSC: Array
    count_BS: Array
    goal_B: Array
    temperature: Array
    key_B: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """The state of the loop.

    Attributes:
        cache: keys and values of the prompt and of all written items but the last.
        logit_BE: logits of the edges for the next item.
        alive_BS: bool, the slots that may still be written.
        slot_BK: int32, the slots written; -1 after the last.
        logp_BK: their log-probabilities; -inf after the last.
        count: int32, number of items written in unfinished rows.
    """

    cache: KVCache
    logit_BE: jax.Array
    alive_BS: jax.Array
    slot_BK: jax.Array
    logp_BK: jax.Array
    count: jax.Array


def generate(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    trie: Trie,
    allowed_BS: Array,
    k: int,
    mode: Mode = "greedy",
    temperature: float = 1.0,
    key_B: jax.Array | None = None,
    sizes: Sizes | None = None,
    prefix: Prefix = NO_PREFIX,
) -> Slate:
    """Writes the slate of every row.

    Args:
        model: the ranker.
        prompt_tokens_BT: int32, prompts padded on the right; keep the number of distinct widths
            small, as each is compiled.
        prompt_length_B: int32, number of tokens of each prompt.
        trie: one trie per row, of a few hundred candidates at most (see `search` for a catalog).
        allowed_BS: bool, the slots that may be written; a row without any stays empty.
        k: items to write; a row with fewer allowed items writes all of them.
        mode: greedy takes the best token at every choice, as language models are decoded; beam
            takes the best item, so that its first is the best of `score`; sample draws tokens.
        temperature: divides the logits of sample; greater than 0.
        key_B: for sample, one random key per row.
        sizes: as for `plan_score`.
        prefix: the tokens that all prompts begin with.

    Raises:
        ValueError: the number of tries is not that of the prompts, or sample has no keys.
    """
    B = len(prompt_length_B)
    if len(trie.slot_RS) != B:
        raise ValueError(f"{len(trie.slot_RS)} tries for {B} prompts")
    if mode == "sample" and key_B is None:
        raise ValueError("sampling needs a key for each row: give key_B")
    allowed_BS = np.asarray(allowed_BS) & (np.asarray(trie.leaf_RS) >= 0)
    sizes = sizes or sizes_of(trie)
    plan = _Plan(
        plan_score(trie, sizes),
        *_texts(trie, sizes.depth),
        goal_B=np.minimum(allowed_BS.sum(axis=1, dtype=np.int32), k),
        temperature=np.array(temperature, np.float32),
        key_B=jax.random.split(jax.random.key(0), B) if key_B is None else key_B,
    )
    graph, weights = nnx.split(model)
    return _generate(
        graph, weights, prompt_tokens_BT, prompt_length_B, plan, allowed_BS, k, mode, prefix
    )


def _texts(trie: Trie, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of each slot, int32 [B, S, width], and their number, [B, S]; 0 in empty slots."""
    depth_BN, parent_BN = np.asarray(trie.depth_RN), np.asarray(trie.parent_RN)
    leaf_BS, is_leaf_BN = np.asarray(trie.leaf_RS), np.asarray(trie.num_children_RN) == 0
    node_BS = np.zeros_like(leaf_BS)
    row_L, node_L = np.nonzero(is_leaf_BN & (depth_BN > 0))
    node_BS[row_L, np.asarray(trie.first_leaf_RN)[row_L, node_L]] = node_L
    node_BS = np.where(leaf_BS >= 0, np.take_along_axis(node_BS, np.maximum(leaf_BS, 0), 1), 0)

    count_BS = np.take_along_axis(depth_BN, node_BS, axis=1)
    text_BSC = np.zeros((*node_BS.shape, width), np.int32)
    for _ in range(int(count_BS.max(initial=0))):
        depth_BS = np.take_along_axis(depth_BN, node_BS, axis=1)
        token_BS = np.take_along_axis(np.asarray(trie.token_RN), node_BS, axis=1)
        row_X, slot_X = np.nonzero(depth_BS > 0)
        text_BSC[row_X, slot_X, depth_BS[row_X, slot_X] - 1] = token_BS[row_X, slot_X]
        node_BS = np.take_along_axis(parent_BN, node_BS, axis=1)
    return text_BSC, count_BS


@partial(jax.jit, static_argnums=(0, 6, 7, 8))
def _generate(
    graph: nnx.GraphDef[Llama],
    weights: State,
    prompt_tokens_BT: jax.Array,
    prompt_length_B: jax.Array,
    plan: _Plan,
    allowed_BS: jax.Array,
    k: int,
    mode: Mode,
    prefix: Prefix,
) -> Slate:
    model = nnx.merge(graph, weights)
    head_BED = model.head_weights()[plan.score.edge_token_BE]

    def unfinished(state: _State) -> jax.Array:
        return jnp.any(state.count < plan.goal_B)

    def step(state: _State) -> _State:
        return _choose(plan, mode, _read_last_item(model, head_BED, plan, state))

    state = _start(model, head_BED, plan, prompt_tokens_BT, prompt_length_B, allowed_BS, k, prefix)
    state = jax.lax.while_loop(unfinished, step, _choose(plan, mode, state))
    return Slate(state.slot_BK, state.logp_BK, passes=state.count)


def _start(
    model: Llama,
    head_BED: jax.Array,
    plan: _Plan,
    prompt_tokens_BT: jax.Array,
    length_B: jax.Array,
    allowed_BS: jax.Array,
    k: int,
    prefix: Prefix,
) -> _State:
    """Reads the prompts and the nodes where the first item can branch."""
    B, T = prompt_tokens_BT.shape
    C = plan.text_BSC.shape[2]
    tokens_BT = jnp.concatenate([prompt_tokens_BT, plan.score.token_BM], axis=1)
    hidden_BTD, cache = model.prefill(
        tokens_BT,
        length_B,
        layout=tree_layout(T, length_B, jnp.int32(0), plan.score),
        slots=T + (k - 1) * C,
        keep=T,
        prefix=prefix,
    )
    return _State(
        cache=cache,
        logit_BE=edge_logits(head_BED, hidden_BTD, T, length_B, plan.score),
        alive_BS=jnp.asarray(allowed_BS),
        slot_BK=jnp.full((B, k), -1, jnp.int32),
        logp_BK=jnp.full((B, k), -jnp.inf),
        count=jnp.int32(0),
    )


def _read_last_item(model: Llama, head_BED: jax.Array, plan: _Plan, state: _State) -> _State:
    """Reads the item written last and the nodes where the next one can branch."""
    slot_B = jnp.take(state.slot_BK, state.count - 1, axis=1)
    slot_B1 = jnp.maximum(slot_B, 0)[:, None]
    text_BC = jnp.take_along_axis(jnp.asarray(plan.text_BSC), slot_B1[:, :, None], axis=1)[:, 0]
    count_B1 = jnp.take_along_axis(jnp.asarray(plan.count_BS), slot_B1, axis=1)
    count_B = jnp.where(slot_B >= 0, count_B1[:, 0], 0)
    C = text_BC.shape[1]
    layout = tree_layout(C, count_B, state.cache.length_B, plan.score)
    hidden_BTD, cache = model.extend(
        jnp.concatenate([text_BC, plan.score.token_BM], axis=1),
        count_B,
        state.cache,
        view_after(state.cache, layout.position_BT, layout.horizon_BT),
        keep=C,
    )
    logit_BE = edge_logits(head_BED, hidden_BTD, C, count_B, plan.score)
    return replace(state, cache=cache, logit_BE=logit_BE)


def _choose(plan: _Plan, mode: Mode, state: _State) -> _State:
    """Writes one more item in every row that is not finished."""
    logp_BS = path_logps(state.logit_BE, state.alive_BS, plan.score.choices)
    match mode:
        case "beam":
            merit_BS = logp_BS
        case "greedy":
            merit_BS = _best_tokens(plan.score.choices, state)
        case "sample":
            # The argmax of log-probabilities with Gumbel noise is a sample of their distribution.
            tempered_BE = state.logit_BE / plan.temperature
            tempered_BS = path_logps(tempered_BE, state.alive_BS, plan.score.choices)
            merit_BS = tempered_BS + _noise(plan.key_B, state.count, logp_BS.shape[1])
    slot_B = jnp.argmax(merit_BS, axis=1).astype(jnp.int32)
    logp_B = jnp.take_along_axis(logp_BS, slot_B[:, None], axis=1)[:, 0]
    writes_B = state.count < plan.goal_B
    here_BS = jnp.arange(logp_BS.shape[1]) == slot_B[:, None]
    return replace(
        state,
        alive_BS=state.alive_BS & ~(here_BS & writes_B[:, None]),
        slot_BK=state.slot_BK.at[:, state.count].set(jnp.where(writes_B, slot_B, -1)),
        logp_BK=state.logp_BK.at[:, state.count].set(jnp.where(writes_B, logp_B, -jnp.inf)),
        count=state.count + 1,
    )


def _best_tokens(choices: Choices, state: _State) -> jax.Array:
    """0 for the slot reached by the best living edge of every choice, negative for all others."""
    above_BES = above(choices)
    living_BE = (above_BES & state.alive_BS[:, None]).any(-1)
    logit_BE = jnp.where(living_BE, state.logit_BE, DEAD)
    best_BM = jnp.where(siblings(choices), logit_BE[:, None], -jnp.inf).argmax(-1)
    source_BE = jnp.maximum(jnp.asarray(choices.source_BE), 0)
    is_best_BE = jnp.take_along_axis(best_BM, source_BE, axis=1) == jnp.arange(source_BE.shape[1])
    misses_BS = (above_BES & ~is_best_BE[:, :, None]).sum(axis=1)
    return jnp.where(state.alive_BS, -misses_BS.astype(jnp.float32), -jnp.inf)


def _noise(key_B: Array, count: jax.Array, slots: int) -> jax.Array:
    """Gumbel noise for every slot, drawn from the key of its row and the rank in the slate."""

    def row(key: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, count), (slots,))

    return jax.vmap(row)(jnp.asarray(key_B))
