"""Keys and values of the tokens read so far, in static shapes.

Shapes: L layers, B batch, S slots, T new tokens, G key/value heads, K head size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The key-value cache of a batch of rows.

    Attributes:
        k_LBSGK: rotated keys; slots from `length_B` on hold rubbish that nobody sees.
        v_LBSGK: values.
        length_B: int32, number of slots in use per row.
    """

    k_LBSGK: jax.Array
    v_LBSGK: jax.Array
    length_B: jax.Array

    def pad_to(self, slots: int) -> "KVCache":
        """The same cache with room for `slots` tokens a row."""
        room = slots - self.k_LBSGK.shape[2]
        pad = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
        return KVCache(jnp.pad(self.k_LBSGK, pad), jnp.pad(self.v_LBSGK, pad), self.length_B)


def write(cache_BSGK: jax.Array, new_BTGK: jax.Array, start_B: jax.Array) -> jax.Array:
    """Writes T new entries of each row from slot `start_B[b]` on; S must have room for them."""

    def row(cache_SGK: jax.Array, new_TGK: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache_SGK, new_TGK, (start, 0, 0))

    return jax.vmap(row)(cache_BSGK, new_BTGK, start_B)
