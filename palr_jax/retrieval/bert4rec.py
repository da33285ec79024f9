"""BERT4Rec: bidirectional attention, trained to predict masked items (Sun et al. 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.dropout import drop_out
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.item_network import ItemNetwork, normal
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.retrieval.transformer import TransformerBlock, split


class BERT4Rec(ItemNetwork):
    """Embeddings and blocks; the output layer shares the item embeddings."""

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_items, rngs)
        embedding = normal(config.init_std)
        self.dropout = config.dropout
        self.position_TD = nnx.Param(embedding(rngs.params(), (config.length, config.dim)))
        self.blocks = nnx.List(
            [TransformerBlock(config, False, rngs) for _ in range(config.num_blocks)]
        )
        self.head = nnx.Linear(config.dim, config.dim, rngs=rngs)
        self.norm = nnx.LayerNorm(config.dim, rngs=rngs)

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The item at each position, as a vector to compare with items: [B, T, D]."""
        keys = split(key, 1 + len(self.blocks))
        position_RT = jnp.asarray(rows.position_RT)
        x_BTD = self.items()[rows.item_RT] + self.position_TD[...][position_RT]
        x_BTD = drop_out(x_BTD, self.dropout, keys[0])
        for index, block in enumerate(self.blocks):
            wanted = newest if index == len(self.blocks) - 1 else 0
            x_BTD = block(x_BTD, position_RT, keys[1 + index], wanted)
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        return self.norm(jax.nn.gelu(self.head(x_ND))).reshape(x_BTD.shape)
