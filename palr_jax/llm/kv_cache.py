"""Keys and values of the tokens read so far, in static shapes.

Shapes: S slots, T new tokens, U = T or 1, G key/value heads, K head size.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

# Keys and values of T new tokens in all layers, each [L, B, G, T, K].
New = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The key-value cache of a batch of rows.

    All rows write new tokens into the same slots, so that a write copies one block. A row that
    reads fewer tokens than others has gaps.

    Attributes:
        k_LBGSK: rotated keys.
        v_LBGSK: values.
        visible_BS: bool, the slots that later tokens see; other slots are undefined.
        length_B: int32, number of tokens of each row: the position of its next token.
        used: int32, the first slot that is free in every row.
    """

    k_LBGSK: jax.Array
    v_LBGSK: jax.Array
    visible_BS: jax.Array
    length_B: jax.Array
    used: jax.Array

    @property
    def slots(self) -> int:
        """S, the capacity of a row in tokens."""
        return self.k_LBGSK.shape[3]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """The positions of T new tokens of each row and what they see.

    Attributes:
        position_BT: int32, RoPE position of each token.
        visible_BUS: bool, the slots of the cache that each token sees; U is 1 if all see the same.
        among_BTT: bool, which of the new tokens each sees, including itself.
    """

    position_BT: jax.Array
    visible_BUS: jax.Array
    among_BTT: jax.Array


def to_slots(new_BTGK: jax.Array, keep: int, slots: int) -> jax.Array:
    """The keys or values of the first `keep` tokens of one layer, as in a cache: [B, G, S, K]."""
    new_BGTK = jnp.swapaxes(new_BTGK[:, :keep], 1, 2)
    return jnp.pad(new_BGTK, ((0, 0), (0, 0), (0, slots - keep), (0, 0)))


def view_after(cache: KVCache, position_BT: jax.Array, horizon_BT: jax.Array) -> View:
    """The view of T new tokens that see all visible tokens of the cache.

    Args:
        cache: keys and values so far.
        position_BT: int32, RoPE position of each new token.
        horizon_BT: int32, the index of the last new token that sees each new token; -1 at padding.
    """
    index_T = jnp.arange(horizon_BT.shape[1])
    among_BTT = (index_T <= index_T[:, None]) & (index_T[:, None] <= horizon_BT[:, None])
    return View(position_BT, cache.visible_BS[:, None], among_BTT)


def view_in_order(cache: KVCache, tokens: int) -> View:
    """The view of `tokens` new tokens that continue the sequence in the cache."""
    position_BT = cache.length_B[:, None] + jnp.arange(tokens)
    return view_after(cache, position_BT, jnp.full_like(position_BT, tokens - 1))


def append(cache: KVCache, new: New, keep: int, count_B: jax.Array) -> KVCache:
    """Writes the first `keep` new tokens into the free slots; `count_B` per row become visible."""
    k_LBGSK, v_LBGSK = (
        jax.lax.dynamic_update_slice_in_dim(old, x[:, :, :, :keep], cache.used, axis=3)
        for old, x in zip((cache.k_LBGSK, cache.v_LBGSK), new, strict=True)
    )
    rank_S = jnp.arange(cache.slots) - cache.used
    fresh_BS = (rank_S >= 0) & (rank_S < count_B[:, None])
    return KVCache(
        k_LBGSK,
        v_LBGSK,
        visible_BS=cache.visible_BS | fresh_BS,
        length_B=cache.length_B + count_B,
        used=cache.used + keep,
    )


def scatter(cache: KVCache, new: New, slot_BT: jax.Array, count_B: jax.Array) -> KVCache:
    """Writes new tokens into the given slots; views define their visibility.

    The slots of a row are distinct, which the caller guarantees. The length of each row grows by
    `count_B`.
    """
    # With rows as a batching axis the compiler can shard them.
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(0, 2, 4),
        inserted_window_dims=(3,),
        scatter_dims_to_operand_dims=(3,),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )

    def put(old_LBGSK: jax.Array, new_LBGTK: jax.Array) -> jax.Array:
        return jax.lax.scatter(
            old_LBGSK,
            slot_BT[:, :, None],
            new_LBGTK,
            numbers,
            unique_indices=True,
            mode="promise_in_bounds",
        )

    return replace(
        cache,
        k_LBGSK=put(cache.k_LBGSK, new[0]),
        v_LBGSK=put(cache.v_LBGSK, new[1]),
        length_B=cache.length_B + count_B,
    )
