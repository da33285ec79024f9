"""SASRec: causal self-attention over the history (Kang and McAuley 2018).

Letters: B rows, T places of a row, D width, H heads, W width of a head, I items.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.rows import Rows

_INIT = nnx.initializers.normal(0.1)


class SASRec(nnx.Module):
    """Embeddings and blocks; the item embeddings are the output layer as well."""

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(config.dropout)
        self.item_ID = nnx.Param(_INIT(rngs.params(), (num_items + 1, config.dim)))
        self.position_TD = nnx.Param(_INIT(rngs.params(), (config.length, config.dim)))
        self.blocks = nnx.List([_Block(config, rngs) for _ in range(config.num_blocks)])
        self.norm = nnx.LayerNorm(config.dim, rngs=rngs)

    def __call__(self, rows: Rows, key: jax.Array | None) -> jax.Array:
        """What follows each token, as a vector to compare with items: [B, T, D].

        Args:
            rows: the tokens.
            key: of dropout; None for none.
        """
        keys = _split(key, 1 + len(self.blocks))
        x_BTD = self.item_ID[...][rows.item_RT] + self.position_TD[...][rows.position_RT]
        x_BTD = self.dropout(x_BTD, deterministic=key is None, rngs=keys[0])
        visible_BTT = _visible(jnp.asarray(rows.position_RT))
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            x_BTD = block(x_BTD, visible_BTT, block_key)
        return self.norm(x_BTD)

    def output_items(self) -> jax.Array:
        """The vectors that scores are inner products with: [I, D]."""
        return self.item_ID[...][:-1]


class _Block(nnx.Module):
    """Attention and a two-layer network, each on a normalised input and added to it."""

    def __init__(self, config: RetrieverConfig, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(config.dropout)
        self.num_heads = config.num_heads
        dim = config.dim
        self.attention_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.up = nnx.Linear(dim, dim, rngs=rngs)
        self.down = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, visible_BTT: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        keys = _split(key, 2)
        B, T, D = x_BTD.shape
        # Linears on [B * T, D]: on [B, T, D] the backward pass on CPU copies the whole gradient.
        x_ND = x_BTD.reshape(B * T, D)
        qkv = self.qkv(self.attention_norm(x_ND)).reshape(B, T, 3, self.num_heads, -1)
        q_BTHW, k_BTHW, v_BTHW = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mixed_BTHW = _attend(q_BTHW, k_BTHW, v_BTHW, visible_BTT)
        mixed_ND = self.out(mixed_BTHW.reshape(B * T, D))
        x_ND += self.dropout(mixed_ND, deterministic=key is None, rngs=keys[0])
        inner_ND = self.down(jax.nn.relu(self.up(self.mlp_norm(x_ND))))
        x_ND += self.dropout(inner_ND, deterministic=key is None, rngs=keys[1])
        return x_ND.reshape(B, T, D)


def _visible(position_BT: jax.Array) -> jax.Array:
    """Whether token t sees token s: s is in t's piece and not after t. bool [B, T, T]."""
    column_T = jnp.arange(position_BT.shape[1])
    begin_BT = column_T - position_BT
    return (column_T <= column_T[:, None]) & (column_T >= begin_BT[:, :, None])


def _attend(
    q_BTHW: jax.Array, k_BTHW: jax.Array, v_BTHW: jax.Array, visible_BTT: jax.Array
) -> jax.Array:
    score_BHTT = jnp.einsum("bthw,bshw->bhts", q_BTHW, k_BTHW) * q_BTHW.shape[-1] ** -0.5
    score_BHTT = jnp.where(visible_BTT[:, None], score_BHTT, -1e30)
    return jnp.einsum("bhts,bshw->bthw", jax.nn.softmax(score_BHTT), v_BTHW)


def _split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))
