"""SASRec: causal self-attention over the history (Kang and McAuley 2018)."""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.dropout import drop_out
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.item_network import ItemNetwork, normal
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.retrieval.transformer import TransformerBlock, split


class SASRec(ItemNetwork):
    """Embeddings and blocks; the output layer shares the item embeddings."""

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_items, rngs)
        embedding = normal(config.init_std)
        self.dropout = config.dropout
        self.input_scale = config.input_scale
        self.norm_first = config.block == "sasrec"
        self.position_TD = nnx.Param(embedding(rngs.params(), (config.length, config.dim)))
        self.blocks = nnx.List(
            [TransformerBlock(config, True, rngs) for _ in range(config.num_blocks)]
        )
        self.norm = nnx.LayerNorm(config.dim, rngs=rngs)

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The next item after each token, as a vector to compare with items: [B, T, D]."""
        keys = split(key, 1 + len(self.blocks))
        position_RT = jnp.asarray(rows.position_RT)
        item_BTD = self.input_scale * self.items()[rows.item_RT]
        x_BTD = item_BTD + self.position_TD[...][position_RT]
        if not self.norm_first:
            x_BTD = self.norm(x_BTD)
        x_BTD = drop_out(x_BTD, self.dropout, keys[0])
        for index, block in enumerate(self.blocks):
            wanted = newest if index == len(self.blocks) - 1 else 0
            x_BTD = block(x_BTD, position_RT, keys[1 + index], wanted)
        return self.norm(x_BTD) if self.norm_first else x_BTD
