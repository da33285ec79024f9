"""HSTU: pointwise gated attention over the history (Zhai et al. 2024, section 3).

This is the encoder without timestamps: its relative bias knows positions alone. Attention weights
are divided by the number of items seen instead of the longest history, so that they do not depend
on `length`, and the loss is that of the other sequential retrievers.

Shapes: Q newest tokens of a row, which are the queries, S keys, W head size.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.dropout import drop_out
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.item_network import ItemNetwork, normal
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.retrieval.transformer import split, split_heads


class HSTU(ItemNetwork):
    """Embeddings and blocks; the output layer shares the item embeddings."""

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_items, rngs)
        embedding = normal(config.init_std)
        self.dropout = config.dropout
        self.position_TD = nnx.Param(embedding(rngs.params(), (config.length, config.dim)))
        self.blocks = nnx.List([HSTUBlock(config, rngs) for _ in range(config.num_blocks)])
        self.norm = nnx.LayerNorm(config.dim, rngs=rngs)

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The next item after each token, as a vector to compare with items: [B, T, D]."""
        keys = split(key, 1 + len(self.blocks))
        position_BT = jnp.asarray(rows.position_RT)
        x_BTD = self.items()[rows.item_RT] + self.position_TD[...][position_BT]
        x_BTD = drop_out(x_BTD, self.dropout, keys[0])
        for index, block in enumerate(self.blocks):
            wanted = newest if index == len(self.blocks) - 1 else 0
            x_BTD = block(x_BTD, position_BT, keys[1 + index], wanted)
        return self.norm(x_BTD)


class HSTUBlock(nnx.Module):
    """Attention by SiLU instead of softmax, gated, with a residual connection.

    From the normalised input come, through SiLU, a gate, values, queries and keys. A token that
    sees n tokens weighs each by SiLU(query · key + bias of their distance) / n.
    """

    def __init__(self, config: RetrieverConfig, rngs: nnx.Rngs) -> None:
        dim = config.dim
        self.dropout = config.dropout
        self.num_heads = config.num_heads
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.uvqk = nnx.Linear(dim, 4 * dim, use_bias=False, rngs=rngs)
        self.bias_HT = nnx.Param(jnp.zeros((config.num_heads, config.length)))
        self.mixed_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.out = nnx.Linear(dim, dim, rngs=rngs)

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
        B, T, D = x_BTD.shape
        Q = newest or T
        # Linears read [B * T, D]: on [B, T, D] the backward pass on CPU copies the whole gradient.
        all_ND = self.norm(x_BTD.reshape(B * T, D))
        newest_ND = all_ND.reshape(B, T, D)[:, T - Q :].reshape(B * Q, D)
        gate_DD, value_DD, query_DD, key_DD = jnp.split(self.uvqk.kernel[...], 4, axis=1)
        q_BHQW, k_BHTW, v_BHTW = (
            split_heads(jax.nn.silu(x_ND @ kernel_DD), B, self.num_heads)
            for x_ND, kernel_DD in ((newest_ND, query_DD), (all_ND, key_DD), (all_ND, value_DD))
        )
        mixed_BHQW = self._attend(q_BHQW, k_BHTW, v_BHTW, position_BT)
        mixed_ND = self.mixed_norm(mixed_BHQW.transpose(0, 2, 1, 3).reshape(B * Q, D))
        gated_ND = mixed_ND * jax.nn.silu(newest_ND @ gate_DD)
        change_ND = self.out(drop_out(gated_ND, self.dropout, key))
        return x_BTD[:, T - Q :] + change_ND.reshape(B, Q, D)

    def _attend(
        self, q_BHQW: jax.Array, k_BHTW: jax.Array, v_BHTW: jax.Array, position_BT: jax.Array
    ) -> jax.Array:
        """Each of the last Q tokens' mean of the values that it sees, weighed: [B, H, Q, W]."""
        Q, T = q_BHQW.shape[2], k_BHTW.shape[2]
        column_Q, column_S = jnp.arange(T - Q, T), jnp.arange(T)
        distance_QS = column_Q[:, None] - column_S
        position_BQ1 = position_BT[:, T - Q :, None]
        visible_BQS = (distance_QS >= 0) & (distance_QS <= position_BQ1)
        bias_HQS = self.bias_HT[...][:, jnp.maximum(distance_QS, 0)]
        score_BHQS = jnp.einsum("bhqw,bhsw->bhqs", q_BHQW, k_BHTW) + bias_HQS
        weight_BHQS = jnp.where(visible_BQS[:, None], jax.nn.silu(score_BHQS), 0)
        mixed_BHQW = jnp.einsum("bhqs,bhsw->bhqw", weight_BHQS, v_BHTW)
        return mixed_BHQW / (position_BQ1[:, None] + 1)
