"""LightGCN: embeddings smoothed over the graph of users and items (He et al. 2020).

Shapes: X = D.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.pairwise import Edges, InnerProduct, PairLoss, Vectors


class _Constant(nnx.Variable[jax.Array]):
    """The graph, which training does not change."""


class LightGCN(InnerProduct):
    """A score is the inner product of layer means; `num_blocks` is the number of layers."""

    loss: PairLoss = "bpr"

    def __init__(
        self, config: RetrieverConfig, edges: Edges, num_users: int, num_items: int, rngs: nnx.Rngs
    ) -> None:
        embedding = nnx.initializers.normal(config.init_std)
        self.num_layers = config.num_blocks
        self.user_UD = nnx.Param(embedding(rngs.params(), (num_users, config.dim)))
        self.item_ID = nnx.Param(embedding(rngs.params(), (num_items, config.dim)))
        user_degree_U = np.maximum(np.bincount(edges.user_N, minlength=num_users), 1)
        item_degree_I = np.maximum(np.bincount(edges.item_N, minlength=num_items), 1)
        degree_N = user_degree_U[edges.user_N] * item_degree_I[edges.item_N]
        self.user_N = _Constant(jnp.asarray(edges.user_N))
        self.item_N = _Constant(jnp.asarray(edges.item_N))
        self.weight_N = _Constant(jnp.asarray(degree_N**-0.5, jnp.float32))
        self.item_scale_I = _Constant(jnp.asarray(item_degree_I**-0.5, jnp.float32))

    def vectors(self) -> Vectors:
        """Means of the layers (equations 3 and 4).

        All of a user's layers but the first are sums over the user's items, so they can be computed
        for a user who was not in the training data.
        """
        user_UD, item_ID = self.user_UD[...], self.item_ID[...]
        share = 1 / (self.num_layers + 1)
        users_UD, items_ID, context_ID = user_UD, item_ID, jnp.zeros_like(item_ID)
        for _ in range(self.num_layers):
            context_ID += item_ID
            user_UD, item_ID = self._to_users(item_ID), self._to_items(user_UD)
            users_UD += user_UD
            items_ID += item_ID
        context_IX = context_ID * self.item_scale_I[...][:, None] * share
        return Vectors(self.user_UD[...] * share, users_UD * share, items_ID * share, context_IX)

    def _to_users(self, item_ID: jax.Array) -> jax.Array:
        message_ND = item_ID[self.item_N[...]] * self.weight_N[...][:, None]
        return jax.ops.segment_sum(
            message_ND, self.user_N[...], len(self.user_UD[...]), indices_are_sorted=True
        )

    def _to_items(self, user_UD: jax.Array) -> jax.Array:
        message_ND = user_UD[self.user_N[...]] * self.weight_N[...][:, None]
        return jax.ops.segment_sum(message_ND, self.item_N[...], len(self.item_ID[...]))
