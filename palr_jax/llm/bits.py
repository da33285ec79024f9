"""Bfloat16 as integers of the same bits, for arrays that are moved and not computed with.

XLA:CPU has no bfloat16 of its own beside products: what slices, gathers from or writes into such
an array widens all of it to float32 first, the weights of all layers for each of them. Integers
are moved as they are, and bits cost nothing to read as another type on any platform.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def to_bits(tree: Any) -> Any:
    """Every bfloat16 array as uint16, others as they are. No gradient goes through the bits."""
    return jax.tree.map(lambda x: _cast(x, jnp.bfloat16, jnp.uint16), tree)


def from_bits(tree: Any) -> Any:
    """What `to_bits` was given: uint16 arrays are read as bfloat16."""
    return jax.tree.map(lambda x: _cast(x, jnp.uint16, jnp.bfloat16), tree)


@jax.custom_vjp
def kept(x: jax.Array) -> jax.Array:
    """`x` itself; a backward pass may find its bits instead of computing it once more."""
    return named(x, "product")


def named(x: jax.Array, name: str) -> jax.Array:
    """`x` itself, its bits marked with a name for `jax.checkpoint`; without a gradient."""
    return from_bits(checkpoint_name(to_bits(x), name))


kept.defvjp(lambda x: (named(x, "product"), None), lambda _, grad: (grad,))


def _cast(x: jax.Array, old: Any, new: Any) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, new) if x.dtype == old else x
