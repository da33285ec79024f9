"""Attention as plain array operations, for every platform, without storing a T x T array.

Queries are processed in blocks, each against the keys up to its last query, so that the half above
the diagonal is not computed. The backward pass recomputes the weights of a block from the
log-sum-exp of its scores (Dao et al. 2022, FlashAttention, section 3.1): on a CPU that is cheaper
than writing the weights of all layers and reading them back.

Shapes: H query heads, G key/value heads, R = H / G query heads that share a key/value head, K head
size, N queries of a block (times R: the query heads of a key/value head are rows of one matrix), S
keys up to the end of the block.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp

from palr_jax.llm.bits import from_bits, named, to_bits
from palr_jax.trees import PyTree

# The scores of a block of this many queries fit a CPU's cache; the number of blocks is limited, so
# that long rows do not make large programs.
_SMALLEST_BLOCK = 64
_MOST_BLOCKS = 16


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked_attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    horizon_BT: jax.Array,
    in_turn: bool,
) -> jax.Array:
    """See `palr_jax.llm.attention.attend`.

    Args:
        q_BTHK: queries.
        k_BTGK: keys.
        v_BTGK: values.
        horizon_BT: int32, the index of the last token that sees each token.
        in_turn: loop over rows and key/value heads instead of batching them: the scores of a block
            then stay in a CPU's cache, which is twice as fast.
    """
    return _forward(q_BTHK, k_BTGK, v_BTGK, horizon_BT, in_turn)[0]


def _forward(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, horizon_BT: jax.Array, in_turn: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    heads = _heads(q_BTHK, k_BTGK, v_BTGK)
    out_BGRTK, logsum_BGRT = _over_heads(_attend, in_turn, horizon_BT, heads)
    out_BTHK = named(_by_token(out_BGRTK), "attended")
    logsum_BGRT = named(logsum_BGRT, "attended")
    return out_BTHK, (q_BTHK, k_BTGK, v_BTGK, horizon_BT, out_BTHK, logsum_BGRT)


def _backward(
    in_turn: bool, kept: tuple[jax.Array, ...], grad_BTHK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHK, k_BTGK, v_BTGK, horizon_BT, out_BTHK, logsum_BGRT = kept
    G = k_BTGK.shape[2]
    grad_BGRTK, out_BGRTK = _by_head(grad_BTHK, G), _by_head(out_BTHK, G)
    # The softmax subtracts the mean of the slopes under the weights.
    mean_BGRT = (grad_BGRTK * out_BGRTK.astype(jnp.float32)).sum(-1)
    heads = (*_heads(q_BTHK, k_BTGK, v_BTGK), grad_BGRTK, mean_BGRT, logsum_BGRT)
    grad_q_BGRTK, grad_k_BGTK, grad_v_BGTK = _over_heads(_gradients, in_turn, horizon_BT, heads)
    return (
        _by_token(grad_q_BGRTK * q_BTHK.shape[3] ** -0.5).astype(q_BTHK.dtype),
        grad_k_BGTK.swapaxes(1, 2).astype(k_BTGK.dtype),
        grad_v_BGTK.swapaxes(1, 2).astype(v_BTGK.dtype),
        None,
    )


blocked_attention.defvjp(_forward, _backward)


def _attend(
    horizon_T: jax.Array, q_RTK: jax.Array, k_TK: jax.Array, v_TK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The output of the query heads that share a key/value head, and the log-sum-exp of scores."""
    R, T, K = q_RTK.shape
    outs, logsums = [], []
    for start, stop in _blocks(T):
        k_SK, v_SK = k_TK[:stop], v_TK[:stop]
        score_NS = _product(q_RTK[:, start:stop].reshape(-1, K), 1, k_SK, 1)
        # A finite floor avoids NaN in rows that see no token (padding).
        score_NS = jnp.where(_visible(horizon_T, start, stop, R), score_NS, -1e30)
        top_N1 = score_NS.max(-1, keepdims=True)
        weight_NS = jnp.exp(score_NS - top_N1)
        sum_N1 = weight_NS.sum(-1, keepdims=True)
        out_NK = _product(weight_NS.astype(v_SK.dtype), 1, v_SK, 0) / sum_N1
        outs.append(out_NK.astype(v_SK.dtype).reshape(R, -1, K))
        logsums.append((top_N1 + jnp.log(sum_N1)).reshape(R, -1))
    return jnp.concatenate(outs, axis=1), jnp.concatenate(logsums, axis=1)


def _gradients(
    horizon_T: jax.Array,
    q_RTK: jax.Array,
    k_TK: jax.Array,
    v_TK: jax.Array,
    grad_RTK: jax.Array,
    mean_RT: jax.Array,
    logsum_RT: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of the scaled queries, of the keys and of the values, in float32."""
    R, T, K = q_RTK.shape
    grad_q = []
    grad_k_TK = grad_v_TK = jnp.zeros((T, K), jnp.float32)
    for start, stop in _blocks(T):
        k_SK, v_SK = k_TK[:stop], v_TK[:stop]
        q_NK = q_RTK[:, start:stop].reshape(-1, K)
        grad_NK = grad_RTK[:, start:stop].reshape(-1, K)
        logsum_N1 = logsum_RT[:, start:stop].reshape(-1, 1)
        mean_N1 = mean_RT[:, start:stop].reshape(-1, 1)
        weight_NS = jnp.exp(_product(q_NK, 1, k_SK, 1) - logsum_N1)
        weight_NS = jnp.where(_visible(horizon_T, start, stop, R), weight_NS, 0)
        slope_NS = weight_NS * (_product(grad_NK, 1, v_SK, 1) - mean_N1)
        weight_NS, slope_NS = weight_NS.astype(v_SK.dtype), slope_NS.astype(k_SK.dtype)
        grad_q.append(_product(slope_NS, 1, k_SK, 0).reshape(R, -1, K))
        grad_k_TK = grad_k_TK.at[:stop].add(_product(slope_NS, 0, q_NK, 0))
        grad_v_TK = grad_v_TK.at[:stop].add(_product(weight_NS, 0, grad_NK, 0))
    return jnp.concatenate(grad_q, axis=1), grad_k_TK, grad_v_TK


def _over_heads(
    work: Callable[..., PyTree], in_turn: bool, horizon_BT: jax.Array, heads: tuple[jax.Array, ...]
) -> PyTree:
    """Maps `work` over rows and key/value heads, the leading axes [B, G] of `heads`."""
    if not in_turn:
        return jax.vmap(jax.vmap(work, (None, *[0] * len(heads))))(horizon_BT, *heads)
    B, G = heads[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(B * G, *x.shape[2:]), heads)

    def one(number: jax.Array) -> PyTree:
        head = jax.tree.map(lambda x: x[number], bits)
        return to_bits(work(horizon_BT[number // G], *from_bits(head)))

    bits = to_bits(flat)
    done = from_bits(jax.lax.map(one, jnp.arange(B * G)))
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[1:]), done)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """The first query of each block and its end (exclusive)."""
    size = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _visible(horizon_T: jax.Array, start: int, stop: int, R: int) -> jax.Array:
    """Which of the first `stop` keys each query of a block sees, [N, S]."""
    index_N1 = jnp.arange(start, stop)[:, None]
    visible_NS = (jnp.arange(stop) <= index_N1) & (index_N1 <= horizon_T[:stop])
    return jnp.tile(visible_NS, (R, 1))


def _product(left: jax.Array, left_axis: int, right: jax.Array, right_axis: int) -> jax.Array:
    return jax.lax.dot_general(
        left, right, (((left_axis,), (right_axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _heads(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array) -> tuple[jax.Array, ...]:
    """Scaled queries [B, G, R, T, K], keys and values [B, G, T, K]."""
    q_BGRTK = _by_head(q_BTHK * q_BTHK.shape[3] ** -0.5, k_BTGK.shape[2])
    return q_BGRTK, k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)


def _by_head(x_BTHK: jax.Array, G: int) -> jax.Array:
    """[B, T, H, K] → [B, G, R, T, K]: the matrix of a head is contiguous."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)


def _by_token(x_BGRTK: jax.Array) -> jax.Array:
    """[B, G, R, T, K] → [B, T, H, K]."""
    B, G, R, T, K = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)
