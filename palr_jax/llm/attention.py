"""Attention under one visibility rule.

Shapes: B batch, T queries, S keys, H query heads, G key/value heads, R = H / G query heads that
share a key/value head, K head size.

The rule: a row is a sequence of tokens, and every token j has a *horizon*, the index of the last
token of the row that sees it. Token i sees token j if and only if j <= i <= horizon[j]. This one
rule serves
- a causal sequence: every horizon is the last index;
- padding: horizon -1, nobody sees it;
- packed rows: the horizon of a token is the end of its own example;
- a trie behind a prompt: nodes stand in preorder, and the horizon of a node is the last node of
  its subtree, so that a node sees the prompt, its ancestors and itself.
"""

import jax
import jax.numpy as jnp

# Full T x T attention is bound by memory on CPUs; blocks of queries that stop at the diagonal
# halve the work and keep the scores in cache.
_QUERY_BLOCK = 256


def attend(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, horizon_BT: jax.Array
) -> jax.Array:
    """Attention of a row over itself.

    Args:
        q_BTHK: queries.
        k_BTGK: keys.
        v_BTGK: values.
        horizon_BT: int32, the index of the last token that sees each token.

    Returns:
        [B, T, H, K] in the type of `v_BTGK`. Tokens that see nothing get a meaningless average.
    """
    length = q_BTHK.shape[1]
    blocks = []
    for start in range(0, length, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        index_T = jnp.arange(start, stop)
        visible_BTS = (jnp.arange(stop) <= index_T[:, None]) & (
            index_T[:, None] <= horizon_BT[:, None, :stop]
        )
        blocks.append(
            _masked(q_BTHK[:, start:stop], k_BTGK[:, :stop], v_BTGK[:, :stop], visible_BTS)
        )
    return jnp.concatenate(blocks, axis=1)


def attend_cached(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, start_B: jax.Array
) -> jax.Array:
    """Attention of T new tokens over a cache that already holds their keys and values.

    The new tokens of row b stand at the indices `start_B[b]` to `start_B[b] + T - 1` of the
    cache; each sees everything up to itself.

    Returns:
        [B, T, H, K] in the type of `v_BSGK`.
    """
    index_BT = start_B[:, None] + jnp.arange(q_BTHK.shape[1])
    visible_BTS = jnp.arange(k_BSGK.shape[1]) <= index_BT[:, :, None]
    return _masked(q_BTHK, k_BSGK, v_BSGK, visible_BTS)


def _masked(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, visible_BTS: jax.Array
) -> jax.Array:
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K) * K**-0.5
    score_BGRTS = jnp.einsum(
        "BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    # A finite floor keeps rows that see nothing (padding) free of NaN.
    score_BGRTS = jnp.where(visible_BTS[:, None, None], score_BGRTS, -1e30)
    weight_BGRTS = jax.nn.softmax(score_BGRTS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weight_BGRTS, v_BSGK).reshape(B, T, H, K)
