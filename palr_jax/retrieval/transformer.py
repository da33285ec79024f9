"""Transformer blocks of the retrievers that attend over a history.

Shapes: Q newest tokens of a row, which are the queries, S keys, W head size.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.dropout import drop_out
from palr_jax.retrieval.config import RetrieverConfig

# The scores of one block of queries fit a CPU's caches better than all scores, and a causal block
# stops at the diagonal. Measured fastest at T = 200.
_QUERY_BLOCK = 100


class TransformerBlock(nnx.Module):
    """Attention and a two-layer network, each with a residual connection.

    `config.block` "sasrec" is pre-norm with ReLU; "bert" is post-norm with GELU and a network of
    four times the width.
    """

    def __init__(self, config: RetrieverConfig, causal: bool, rngs: nnx.Rngs) -> None:
        dim = config.dim
        self.norm_first = config.block == "sasrec"
        hidden = dim if self.norm_first else 4 * dim
        self.dropout = config.dropout
        self.num_heads = config.num_heads
        self.causal = causal
        self.attention_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.up = nnx.Linear(dim, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, dim, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, position_BT: jax.Array, key: jax.Array | None, newest: int = 0
    ) -> jax.Array:
        """The tokens after this block: [B, T, D], or [B, newest, D].

        Args:
            x_BTD: tokens.
            position_BT: position of each token in its piece, from 0.
            key: dropout key; None disables dropout.
            newest: return only this many last tokens; 0 for all.
        """
        keys = split(key, 3)
        B, T, D = x_BTD.shape
        Q = newest or T
        # Linears read [B * T, D]: on [B, T, D] the backward pass on CPU copies the whole gradient.
        all_ND = x_BTD.reshape(B * T, D)
        x_ND = x_BTD[:, T - Q :].reshape(B * Q, D)
        if self.norm_first:
            mixed_ND = self._mix(self.attention_norm(all_ND), position_BT, Q, None)
            x_ND += drop_out(mixed_ND, self.dropout, keys[0])
            inner_ND = self.down(jax.nn.relu(self.up(self.mlp_norm(x_ND))))
            x_ND += drop_out(inner_ND, self.dropout, keys[1])
        else:
            mixed_ND = self._mix(all_ND, position_BT, Q, keys[2])
            x_ND = self.attention_norm(x_ND + drop_out(mixed_ND, self.dropout, keys[0]))
            inner_ND = self.down(jax.nn.gelu(self.up(x_ND)))
            x_ND = self.mlp_norm(x_ND + drop_out(inner_ND, self.dropout, keys[1]))
        return x_ND.reshape(B, Q, D)

    def _mix(
        self, inner_ND: jax.Array, position_BT: jax.Array, queries: int, key: jax.Array | None
    ) -> jax.Array:
        """Attention of the last `queries` tokens of each row: [B * Q, D]."""
        B, T = position_BT.shape
        newest_ND = inner_ND
        if queries < T:
            # Only the newest tokens are queries; all tokens are keys.
            D = inner_ND.shape[1]
            newest_ND = inner_ND.reshape(B, T, D)[:, T - queries :].reshape(B * queries, D)
        # Three products: splitting the result of a single one would copy it.
        query_DD, key_DD, value_DD = jnp.split(self.qkv.kernel[...], 3, axis=1)
        q_BHQW = split_heads(newest_ND @ query_DD, B, self.num_heads)
        k_BHTW = split_heads(inner_ND @ key_DD, B, self.num_heads)
        v_BHTW = split_heads(inner_ND @ value_DD, B, self.num_heads)
        mixed_BHQW = attend(
            q_BHQW, k_BHTW, v_BHTW, position_BT, self.causal, dropout=self.dropout, key=key
        )
        return self.out(mixed_BHQW.transpose(0, 2, 1, 3).reshape(B * queries, -1))


def split_heads(x_ND: jax.Array, rows: int, heads: int) -> jax.Array:
    """Splits the width of the tokens of `rows` rows into heads: [B, H, T, W]."""
    x_BTHW = x_ND.reshape(rows, len(x_ND) // rows, heads, -1)
    return x_BTHW.transpose(0, 2, 1, 3)


def attend(
    q_BHQW: jax.Array,
    k_BHTW: jax.Array,
    v_BHTW: jax.Array,
    position_BT: jax.Array,
    causal: bool,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Attention of the last Q tokens over their pieces: [B, H, Q, W].

    A token sees the tokens of its own piece: up to itself if `causal`, else all of them.

    Args:
        q_BHQW: queries.
        k_BHTW: keys.
        v_BHTW: values.
        position_BT: position of each token in its piece, from 0.
        causal: whether a token sees only itself and earlier tokens.
        dropout: dropout rate of the attention weights.
        key: dropout key; None disables dropout.
    """
    T, W = k_BHTW.shape[2:]
    queries = q_BHQW.shape[2]
    first_BT, last_BT = _piece(position_BT, causal)
    blocks = []
    for start in range(T - queries, T, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, T)
        keys = stop if causal else T
        column_S = jnp.arange(keys)
        visible_BQS = (column_S >= first_BT[:, start:stop, None]) & (
            column_S <= last_BT[:, start:stop, None]
        )
        q_BHQW_block = q_BHQW[:, :, start - T + queries : stop - T + queries] * W**-0.5
        score_BHQS = jnp.einsum("bhqw,bhsw->bhqs", q_BHQW_block, k_BHTW[:, :, :keys])
        score_BHQS = jnp.where(visible_BQS[:, None], score_BHQS, -1e30)
        highest_BHQ1 = jax.lax.stop_gradient(score_BHQS.max(-1, keepdims=True))
        share_BHQS = jnp.exp(score_BHQS - highest_BHQ1)
        # Dividing [.., W] by the softmax's denominator instead of [.., S] saves a pass over scores.
        sum_BHQ1 = share_BHQS.sum(-1, keepdims=True)
        block_key = None if key is None else jax.random.fold_in(key, start)
        share_BHQS = drop_out(share_BHQS, dropout, block_key)
        mixed_BHQW = jnp.einsum("bhqs,bhsw->bhqw", share_BHQS, v_BHTW[:, :, :keys])
        blocks.append(mixed_BHQW / sum_BHQ1)
    return jnp.concatenate(blocks, axis=2)


def _piece(position_BT: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array]:
    """The first and the last column that each token sees: both int32 [B, T]."""
    T = position_BT.shape[1]
    column_T = jnp.arange(T)
    first_BT = column_T - position_BT
    if causal:
        return first_BT, jnp.broadcast_to(column_T, first_BT.shape)
    start_BT = jnp.where(position_BT == 0, column_T, T)
    next_BT = jax.lax.cummin(start_BT, axis=1, reverse=True)  # first piece start at or after t
    return first_BT, jnp.concatenate([next_BT[:, 1:], jnp.full_like(next_BT[:, :1], T)], 1) - 1


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits a dropout key into `count`; None gives a list of None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
