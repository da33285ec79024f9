"""Greedy decoding of free text, for a batch of rows of different lengths.

Shapes: N new tokens, S stop tokens.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.decoding.trie import Array
from palr_jax.llm.kv_cache import KVCache
from palr_jax.llm.llama import Llama
from palr_jax.trees import State

# Tokens written, the last hidden state, the cache, what is written, the rows that continue.
_State = tuple[int, jax.Array, KVCache, jax.Array, jax.Array]


def write_text(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    new_tokens: int,
    stop_ids: Sequence[int],
) -> np.ndarray:
    """Decodes greedily until a stop token.

    Args:
        model: any LLaMA.
        prompt_tokens_BT: int32, prompts padded on the right; keep the number of distinct widths
            small, as each is compiled.
        prompt_length_B: int32, number of tokens of each prompt, at least one.
        new_tokens: N, maximum number of tokens to write.
        stop_ids: tokens that end a row.

    Returns:
        int32 [B, N], without the stop token; -1 after the end of a row.
    """
    graph, weights = nnx.split(model)
    stop_ids_S = jnp.asarray(stop_ids, jnp.int32)
    return np.asarray(
        _write(graph, weights, prompt_tokens_BT, prompt_length_B, stop_ids_S, new_tokens)
    )


@partial(jax.jit, static_argnums=(0, 5))
def _write(
    graph: nnx.GraphDef[Llama],
    weights: State,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    stop_ids_S: jax.Array,
    new_tokens: int,
) -> jax.Array:
    model = nnx.merge(graph, weights)
    head_VD = model.head_weights()
    B, T = tokens_BT.shape
    # A row that has ended keeps writing an undefined token after its last one: one extra slot.
    hidden_BTD, cache = model.prefill(tokens_BT, length_B, slots=T + new_tokens + 1)
    last_BD = jnp.take_along_axis(hidden_BTD, length_B[:, None, None] - 1, axis=1)[:, 0]
    written_BN = jnp.full((B, new_tokens), -1, jnp.int32)

    def unfinished(state: _State) -> jax.Array:
        index, _, _, _, going_B = state
        return (index < new_tokens) & going_B.any()

    def step(state: _State) -> _State:
        index, last_BD, cache, written_BN, going_B = state
        next_B = model.logits(last_BD, head_VD).argmax(-1).astype(jnp.int32)
        going_B &= ~jnp.isin(next_B, stop_ids_S)
        written_BN = written_BN.at[:, index].set(jnp.where(going_B, next_B, -1))
        hidden_B1D, cache = model.extend(next_B[:, None], going_B.astype(jnp.int32), cache)
        return index + 1, hidden_B1D[:, 0], cache, written_BN, going_B

    start = (0, last_BD, cache, written_BN, jnp.ones(B, bool))
    return jax.lax.while_loop(unfinished, step, start)[3]
