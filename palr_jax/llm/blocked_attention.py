"""Attention as plain array operations, for every platform: no T x T array is ever kept.

Queries are taken in blocks, each against the keys up to its last query, so that the half above
the diagonal is never computed. The backward pass computes a block's weights once more from the
log-sum of its scores (Dao et al. 2022, FlashAttention, section 3.1): on a CPU, writing the weights
of all layers and reading them again costs more than that.

Shapes: B batch, T tokens, H query heads, G key/value heads, R = H / G query heads that share a
key/value head, K head size, N queries of a block (R · N where heads are merged with them), S the
keys up to its end.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from palr_jax.llm.bits import named

# Blocks of this many queries keep their scores in a CPU's cache; no more blocks than this, so that
# long rows do not make large programs.
_SMALLEST_BLOCK = 64
_MOST_BLOCKS = 16


@jax.custom_vjp
def blocked_attention(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, horizon_BT: jax.Array
) -> jax.Array:
    """See `palr_jax.llm.attention.attend`."""
    return _forward(q_BTHK, k_BTGK, v_BTGK, horizon_BT)[0]


def _forward(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, horizon_BT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, T, H, K = q_BTHK.shape
    q_BGRTK = _by_group(q_BTHK * K**-0.5, k_BTGK.shape[2])
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    outs, logsums = [], []
    for start, stop in _blocks(T):
        block = (*q_BGRTK.shape[:3], stop - start)
        v_BGSK = v_BGTK[:, :, :stop]
        score_BGNS = _product("BGNK,BGSK->BGNS", _rows(q_BGRTK, start, stop), k_BGTK[:, :, :stop])
        # A finite floor keeps rows that see nothing (padding) free of NaN.
        visible = _visible(horizon_BT, start, stop)
        score_BGRNS = jnp.where(visible, score_BGNS.reshape(*block, stop), -1e30)
        top_BGRN1 = score_BGRNS.max(-1, keepdims=True)
        weight_BGRNS = jnp.exp(score_BGRNS - top_BGRN1)
        sum_BGRN1 = weight_BGRNS.sum(-1, keepdims=True)
        weight_BGNS = weight_BGRNS.astype(v_BGSK.dtype).reshape(score_BGNS.shape)
        out_BGNK = _product("BGNS,BGSK->BGNK", weight_BGNS, v_BGSK)
        outs.append((out_BGNK.reshape(*block, K) / sum_BGRN1).astype(v_BGSK.dtype))
        logsums.append((top_BGRN1 + jnp.log(sum_BGRN1))[..., 0])
    out_BGRTK = jnp.concatenate(outs, axis=3)
    out_BTHK = named(out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K), "attended")
    logsum_BGRT = named(jnp.concatenate(logsums, axis=3), "attended")
    return out_BTHK, (q_BTHK, k_BTGK, v_BTGK, horizon_BT, out_BTHK, logsum_BGRT)


def _backward(
    kept: tuple[jax.Array, ...], grad_BTHK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHK, k_BTGK, v_BTGK, horizon_BT, out_BTHK, logsum_BGRT = kept
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    q_BGRTK, grad_BGRTK = _by_group(q_BTHK * K**-0.5, G), _by_group(grad_BTHK, G)
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    # What the softmax takes off: the mean of the slopes under the weights.
    out_BGRTK = _by_group(out_BTHK, G).astype(jnp.float32)
    mean_BGRT = (grad_BGRTK * out_BGRTK).sum(-1)
    grad_q, grad_k_BGTK = [], jnp.zeros(k_BGTK.shape, jnp.float32)
    grad_v_BGTK = jnp.zeros_like(grad_k_BGTK)
    for start, stop in _blocks(T):
        block = (*q_BGRTK.shape[:3], stop - start)
        q_BGNK, grad_BGNK = _rows(q_BGRTK, start, stop), _rows(grad_BGRTK, start, stop)
        k_BGSK, v_BGSK = k_BGTK[:, :, :stop], v_BGTK[:, :, :stop]
        score_BGRNS = _product("BGNK,BGSK->BGNS", q_BGNK, k_BGSK).reshape(*block, stop)
        weight_BGRNS = jnp.exp(score_BGRNS - logsum_BGRT[..., start:stop, None])
        weight_BGRNS = jnp.where(_visible(horizon_BT, start, stop), weight_BGRNS, 0)
        slope_BGRNS = _product("BGNK,BGSK->BGNS", grad_BGNK, v_BGSK).reshape(*block, stop)
        slope_BGRNS = weight_BGRNS * (slope_BGRNS - mean_BGRT[..., start:stop, None])
        slope_BGNS = slope_BGRNS.astype(k_BGSK.dtype).reshape(B, G, -1, stop)
        weight_BGNS = weight_BGRNS.astype(k_BGSK.dtype).reshape(B, G, -1, stop)
        grad_q.append(_product("BGNS,BGSK->BGNK", slope_BGNS, k_BGSK).reshape(*block, K))
        grad_k_BGSK = _product("BGNS,BGNK->BGSK", slope_BGNS, q_BGNK)
        grad_v_BGSK = _product("BGNS,BGNK->BGSK", weight_BGNS, grad_BGNK)
        grad_k_BGTK = grad_k_BGTK.at[:, :, :stop].add(grad_k_BGSK)
        grad_v_BGTK = grad_v_BGTK.at[:, :, :stop].add(grad_v_BGSK)
    grad_q_BGRTK = jnp.concatenate(grad_q, axis=3) * K**-0.5
    grad_q_BTHK = grad_q_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K).astype(q_BTHK.dtype)
    grad_k_BTGK = grad_k_BGTK.swapaxes(1, 2).astype(k_BTGK.dtype)
    return grad_q_BTHK, grad_k_BTGK, grad_v_BGTK.swapaxes(1, 2).astype(v_BTGK.dtype), None


blocked_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """The first and the last query of each block, the last not included."""
    size = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _visible(horizon_BT: jax.Array, start: int, stop: int) -> jax.Array:
    """Which of the first `stop` keys each query of a block sees, [B, 1, 1, N, S]."""
    index_N1 = jnp.arange(start, stop)[:, None]
    visible_BNS = (jnp.arange(stop) <= index_N1) & (index_N1 <= horizon_BT[:, None, :stop])
    return visible_BNS[:, None, None]


def _product(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(formula, left, right, preferred_element_type=jnp.float32)


def _by_group(x_BTHK: jax.Array, G: int) -> jax.Array:
    """[B, T, H, K] → [B, G, R, T, K]: matrices of one head lie in one piece."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)


def _rows(x_BGRTK: jax.Array, start: int, stop: int) -> jax.Array:
    """The queries of a block as rows of one matrix per key/value head, [B, G, R · N, K].

    XLA:CPU transposes both sides of a product whose gradient contracts over two axes.
    """
    B, G, _, _, K = x_BGRTK.shape
    return x_BGRTK[..., start:stop, :].reshape(B, G, -1, K)
