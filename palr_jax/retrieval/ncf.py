"""NCF, as NeuMF: a product and a small network score a user and an item (He et al. 2017).

Shapes: C items of a chunk, E = D // 2, K items to match, X = 2 D: the first half is the input of
the product, the second that of the network.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.pairwise import Edges, PairLoss, Queries, Vectors

_DENSE = nnx.initializers.lecun_normal()
_LAST = nnx.initializers.normal(0.1)


class NCF(nnx.Module):
    """Two embeddings per user and item, one of them followed by three layers."""

    loss: PairLoss = "bce"

    def __init__(
        self, config: RetrieverConfig, edges: Edges, num_users: int, num_items: int, rngs: nnx.Rngs
    ) -> None:
        embedding = nnx.initializers.normal(config.init_std)
        dim = config.dim
        self.user_UX = nnx.Param(embedding(rngs.params(), (num_users, 2 * dim)))
        self.item_IX = nnx.Param(embedding(rngs.params(), (num_items, 2 * dim)))
        self.first = nnx.Param(_DENSE(rngs.params(), (2 * dim, dim)))
        self.first_bias = nnx.Param(jnp.zeros(dim))
        self.second = nnx.Param(_DENSE(rngs.params(), (dim, dim // 2)))
        self.second_bias = nnx.Param(jnp.zeros(dim // 2))
        self.last = nnx.Param(_LAST(rngs.params(), (dim + dim // 2,)))

    def vectors(self) -> Vectors:
        """The embedding tables, unchanged."""
        user_UX, item_IX = self.user_UX[...], self.item_IX[...]
        return Vectors(user_UX, user_UX, item_IX, jnp.zeros_like(item_IX))

    def weights(self) -> dict[str, jax.Array]:
        """The parameters of the layers."""
        return {
            "first": self.first[...],
            "first_bias": self.first_bias[...],
            "second": self.second[...],
            "second_bias": self.second_bias[...],
            "last": self.last[...],
        }

    @staticmethod
    def match(weights: dict[str, jax.Array], user_BX: jax.Array, item_BKX: jax.Array) -> jax.Array:
        """The scores of K items for each user: [B, K]."""
        user_B1X = user_BX[:, None]
        dim = user_BX.shape[1] // 2
        product_BKD = user_B1X[..., :dim] * item_BKX[..., :dim]
        # The first layer of the concatenated vectors is the sum of one layer per vector.
        of_user_B1D = user_B1X[..., dim:] @ weights["first"][:dim]
        of_item_BKD = item_BKX[..., dim:] @ weights["first"][dim:]
        inner_BKD = jax.nn.relu(of_user_B1D + of_item_BKD + weights["first_bias"])
        inner_BKE = jax.nn.relu(inner_BKD @ weights["second"] + weights["second_bias"])
        return product_BKD @ weights["last"][:dim] + inner_BKE @ weights["last"][dim:]

    @staticmethod
    def match_all(queries: Queries, item_CX: jax.Array) -> jax.Array:
        """The scores of the same C items for all users, one user at a time: [B, C]."""

        def one(user_X: jax.Array) -> jax.Array:
            return NCF.match(queries["weights"], user_X[None], item_CX[None])[0]

        return jax.lax.map(one, queries["user_BX"])
