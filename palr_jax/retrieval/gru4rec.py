"""GRU4Rec: a recurrent network over the history (Hidasi et al. 2016).

Shapes: G = 3 D gates.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.dropout import drop_out
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.item_network import ItemNetwork
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.retrieval.transformer import split


class GRU4Rec(ItemNetwork):
    """Item embeddings, GRU layers and a linear layer; the output layer shares the embeddings."""

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_items, rngs)
        self.dropout = config.dropout
        self.layers = nnx.List([_GRU(config.dim, rngs) for _ in range(config.num_blocks)])
        self.out = nnx.Linear(config.dim, config.dim, rngs=rngs)

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The next item after each token, as a vector to compare with items: [B, T, D]."""
        keys = split(key, 1 + len(self.layers))
        x_BTD = self.items()[rows.item_RT]
        x_BTD = drop_out(x_BTD, self.dropout, keys[0])
        for layer, layer_key in zip(self.layers, keys[1:], strict=True):
            x_BTD = layer(x_BTD, jnp.asarray(rows.position_RT))
            x_BTD = drop_out(x_BTD, self.dropout, layer_key)
        x_BTD = x_BTD[:, -newest:]  # all of them if newest is 0
        return self.out(x_BTD.reshape(-1, x_BTD.shape[-1])).reshape(x_BTD.shape)


class _GRU(nnx.Module):
    """Gated recurrent units (Cho et al. 2014) whose state is reset at the start of a piece."""

    def __init__(self, dim: int, rngs: nnx.Rngs) -> None:
        self.input = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.recurrent = nnx.Linear(
            dim, 3 * dim, kernel_init=nnx.initializers.orthogonal(), rngs=rngs
        )

    def __call__(self, x_BTD: jax.Array, position_BT: jax.Array) -> jax.Array:
        B, T, D = x_BTD.shape
        # The input projections of all tokens are one product; only the state's are sequential.
        gates_BTG = self.input(x_BTD.reshape(B * T, D)).reshape(B, T, 3 * D)

        def advance(
            state_BD: jax.Array, now: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            gates_BG, position_B = now
            state_BD = jnp.where(position_B[:, None] == 0, 0, state_BD)
            reset_BD, update_BD, new_BD = jnp.split(gates_BG, 3, axis=1)
            of_reset_BD, of_update_BD, of_new_BD = jnp.split(self.recurrent(state_BD), 3, axis=1)
            keep_BD = jax.nn.sigmoid(update_BD + of_update_BD)
            new_BD = jnp.tanh(new_BD + jax.nn.sigmoid(reset_BD + of_reset_BD) * of_new_BD)
            state_BD = keep_BD * state_BD + (1 - keep_BD) * new_BD
            return state_BD, state_BD

        inputs = (gates_BTG.swapaxes(0, 1), position_BT.T)
        _, state_TBD = jax.lax.scan(advance, jnp.zeros((B, D)), inputs)
        return state_TBD.swapaxes(0, 1)
