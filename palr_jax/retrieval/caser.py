"""Caser: convolutions over the last few items, as over an image (Tang and Wang 2018).

The published model adds a user embedding. This one represents users by their histories only.

Shapes: N = B * T tokens, L items of a window, H items under a filter (its height), F filters of a
height, O offsets of filters in the window.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.dropout import drop_out
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.item_network import ItemNetwork, normal
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.retrieval.transformer import split

_WINDOW = 5  # the paper's Markov order L
_ACROSS = 16  # horizontal filters of each height
_DOWN = 4  # vertical filters
_FILTER = normal(0.1)


class Caser(ItemNetwork):
    """Horizontal and vertical filters over a window, and a linear layer over their outputs."""

    def __init__(self, config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> None:
        super().__init__(config, num_items, rngs)
        dim = config.dim
        self.dropout = config.dropout
        heights = range(1, _WINDOW + 1)
        self.across_HDF = nnx.List(
            [nnx.Param(_FILTER(rngs.params(), (height, dim, _ACROSS))) for height in heights]
        )
        self.across_bias_F = nnx.Param(jnp.zeros(_WINDOW * _ACROSS))
        self.down_LF = nnx.Param(_FILTER(rngs.params(), (_WINDOW, _DOWN)))
        self.join = nnx.Linear(_WINDOW * _ACROSS + _DOWN * dim, dim, rngs=rngs)

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The next item after each token, as a vector to compare with items: [B, T, D]."""
        keys = split(key, 2)
        x_BTD = self.items()[rows.item_RT]
        x_BTD = drop_out(x_BTD, self.dropout, keys[0])
        window_BTLD = _windows(x_BTD, jnp.asarray(rows.position_RT))[:, -newest:]
        B, T, L, D = window_BTLD.shape
        window_NLD = window_BTLD.reshape(B * T, L, D)
        down_NFD = jnp.einsum("nld,lf->nfd", window_NLD, self.down_LF[...])
        filters = [kernel_HDF[...] for kernel_HDF in self.across_HDF]
        across_NF = jax.nn.relu(_strongest(filters, window_NLD) + self.across_bias_F[...])
        found_NF = jnp.concatenate([across_NF, down_NFD.reshape(B * T, -1)], axis=1)
        found_NF = drop_out(found_NF, self.dropout, keys[1])
        return jax.nn.relu(self.join(found_NF)).reshape(B, T, D)


def _windows(x_BTD: jax.Array, position_BT: jax.Array) -> jax.Array:
    """The last L tokens of a piece up to each token, left-padded with zeros: [B, T, L, D]."""
    shifted = []
    for back in range(_WINDOW - 1, -1, -1):
        earlier_BTD = jnp.roll(x_BTD, back, axis=1)
        shifted.append(jnp.where((position_BT >= back)[..., None], earlier_BTD, 0))
    return jnp.stack(shifted, axis=2)


def _strongest(filters: list[jax.Array], window_NLD: jax.Array) -> jax.Array:
    """The highest response of every filter over its offsets in the window: [N, sum of F].

    All filters at all offsets form one matrix product, each kernel padded with zeros to the window.
    This does more arithmetic than one product per filter, but compiles and runs far fewer
    operations.
    """
    N, L, _ = window_NLD.shape
    padded = [
        jnp.pad(kernel_HDF, [(offset, L - len(kernel_HDF) - offset), (0, 0), (0, 0)])
        for kernel_HDF in filters
        for offset in range(L - len(kernel_HDF) + 1)
    ]
    kernels_LDOF = jnp.stack(padded, axis=2)
    response_NOF = jnp.einsum("nld,ldof->nof", window_NLD, kernels_LDOF)
    offsets = [L - len(kernel_HDF) + 1 for kernel_HDF in filters]
    stops = [sum(offsets[: index + 1]) for index in range(len(offsets) - 1)]
    highest = [part.max(axis=1) for part in jnp.split(response_NOF, stops, axis=1)]
    return jnp.concatenate(highest, axis=1).reshape(N, -1)
