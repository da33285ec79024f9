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
        k_LBGSK: rotated keys; slots from `length_B` on hold rubbish that nobody sees.
        v_LBGSK: values.
        length_B: int32, number of slots in use per row.
    """

    k_LBGSK: jax.Array
    v_LBGSK: jax.Array
    length_B: jax.Array

    @property
    def slots(self) -> int:
        """S, how many tokens a row can hold."""
        return self.k_LBGSK.shape[3]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """Where T new tokens of each row stand and what they see.

    Attributes:
        position_BT: int32, the place that RoPE turns each to.
        slot_BT: int32, the slot of the cache that holds each; no two of a row in one.
        visible_BTS: bool, the slots of the cache that each sees, itself included.
    """

    position_BT: jax.Array
    slot_BT: jax.Array
    visible_BTS: jax.Array


def to_slots(new_BTGK: jax.Array, slots: int) -> jax.Array:
    """The keys or values of one layer as the cache keeps them, heads first: [B, G, S, K]."""
    new_BGTK = jnp.swapaxes(new_BTGK, 1, 2)
    return jnp.pad(new_BGTK, ((0, 0), (0, 0), (0, slots - new_BGTK.shape[2]), (0, 0)))


def write(
    cache_LBGSK: jax.Array, layer: jax.Array, new_BTGK: jax.Array, slot_BT: jax.Array
) -> jax.Array:
    """Writes T new entries of each row into slots of one layer.

    Writing into the whole cache, as against a slice of it, lets the compiler do so in place.
    """
    # Naming the rows a batching axis lets the compiler divide them among devices.
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(2, 3),
        inserted_window_dims=(0, 3),
        scatter_dims_to_operand_dims=(0, 3),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(
        cache_LBGSK,
        jnp.stack([jnp.full_like(slot_BT, layer), slot_BT], axis=2),
        new_BTGK.astype(cache_LBGSK.dtype),
        numbers,
        unique_indices=True,
        mode="promise_in_bounds",
    )


def view_behind(cache: KVCache, position_BT: jax.Array, horizon_BT: jax.Array) -> View:
    """T tokens in the T slots behind those in use, which all of them see.

    Args:
        cache: must have T free slots in every row.
        position_BT: int32, where the tokens stand.
        horizon_BT: int32, the index of the last new token that sees each new token; -1 for none.
    """
    T = horizon_BT.shape[1]
    start_B1 = cache.length_B[:, None]
    rank_BS = jnp.arange(cache.slots) - start_B1
    horizon_BS = jnp.take_along_axis(horizon_BT, jnp.clip(rank_BS, 0, T - 1), axis=1)
    index_T1 = jnp.arange(T)[:, None]
    among_BTS = (rank_BS[:, None] <= index_T1) & (index_T1 <= horizon_BS[:, None])
    return View(position_BT, start_B1 + jnp.arange(T), (rank_BS < 0)[:, None] | among_BTS)


def view_in_order(cache: KVCache, tokens: int) -> View:
    """`tokens` tokens that follow those in use and one another."""
    position_BT = cache.length_B[:, None] + jnp.arange(tokens)
    return view_behind(cache, position_BT, jnp.full_like(position_BT, tokens - 1))
