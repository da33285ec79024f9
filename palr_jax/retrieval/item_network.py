"""Item vectors of the sequential networks: learned embeddings, and fixed features if configured.

Shapes: R width of the features.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from palr_jax.retrieval.config import FEATURE_WIDTH, RetrieverConfig

# Of features, and so of the vectors of titles, which may be features.
WIDTH = FEATURE_WIDTH
# The parameter that holds the learned embeddings.
EMBEDDINGS = "item_ID"
# The parameter that holds the features: saved with the others, but never trained.
FEATURES = "feature_IR"


def normal(std: float) -> nnx.initializers.Initializer:
    """Draws from a normal distribution; the bits do not depend on what else a program does."""

    def draw(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, **_: object
    ) -> jax.Array:
        # Otherwise, XLA would merge the product with one within the drawing.
        return jax.lax.optimization_barrier(jax.random.normal(key, shape, dtype)) * std

    return draw


class ItemNetwork(nnx.Module):
    """A network that reads items and predicts them with the same vectors.

    With features, the vector of an item is its own embedding plus a learned linear map of its
    features, so that items with few interactions share what is learned about similar ones.
    """

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        embedding = normal(config.init_std)
        # The last row is for the padding and mask tokens.
        self.item_ID = nnx.Param(embedding(rngs.params(), (num_items + 1, config.dim)))
        self.has_features = config.item_features != "none"
        if self.has_features:
            self.feature_IR = nnx.Param(jnp.zeros((num_items + 1, WIDTH)))
            self.feature_map_RD = nnx.Param(jnp.zeros((WIDTH, config.dim)))

    def items(self) -> jax.Array:
        """The vectors of all items, and of the padding and mask tokens: [I + 1, D]."""
        if not self.has_features:
            return self.item_ID[...]
        feature_IR = jax.lax.stop_gradient(self.feature_IR[...])
        return self.item_ID[...] + feature_IR @ self.feature_map_RD[...]

    def output_items(self) -> jax.Array:
        """The item vectors; scores are inner products with them: [I, D]."""
        return self.items()[:-1]


def scaled_features(vectors_IR: np.ndarray) -> np.ndarray:
    """Features as networks take them: float32 [I + 1, WIDTH], zeros in the last row.

    The columns have mean 0. The mean squared length of the rows is 1, so that one step of the
    optimizer changes item vectors by about as much through the map as through the embeddings.

    Args:
        vectors_IR: vectors of all items, at most `WIDTH` wide.
    """
    centred_IR = vectors_IR - vectors_IR.mean(axis=0)
    length = np.sqrt((centred_IR**2).sum(axis=1).mean())
    feature_IR = np.zeros((len(vectors_IR) + 1, WIDTH), np.float32)
    feature_IR[:-1, : vectors_IR.shape[1]] = centred_IR / max(length, 1e-12)
    return feature_IR
