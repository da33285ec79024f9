"""BPR-MF: matrix factorisation trained to rank (Rendle et al. 2009).

Shapes: X = D + 1, a vector and the item's bias.
"""

import jax.numpy as jnp
from flax import nnx

from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.pairwise import Edges, InnerProduct, PairLoss, Vectors


class BPRMF(InnerProduct):
    """A score is the inner product of the user's and the item's vector, plus the item's bias."""

    loss: PairLoss = "bpr"

    def __init__(
        self, config: RetrieverConfig, edges: Edges, num_users: int, num_items: int, rngs: nnx.Rngs
    ) -> None:
        embedding = nnx.initializers.normal(config.init_std)
        self.user_UD = nnx.Param(embedding(rngs.params(), (num_users, config.dim)))
        self.item_ID = nnx.Param(embedding(rngs.params(), (num_items, config.dim)))
        self.bias_I = nnx.Param(jnp.zeros(num_items))

    def vectors(self) -> Vectors:
        """The last coordinate is the bias for items and 1 for users."""
        user_UX = jnp.pad(self.user_UD[...], [(0, 0), (0, 1)], constant_values=1)
        item_IX = jnp.concatenate([self.item_ID[...], self.bias_I[...][:, None]], axis=1)
        return Vectors(user_UX, user_UX, item_IX, jnp.zeros_like(item_IX))
