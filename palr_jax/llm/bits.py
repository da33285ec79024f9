"""Bfloat16 as integers of the same bits, for arrays that are moved and not computed with.

XLA:CPU supports bfloat16 in products only: slicing, gathering or updating such an array first
converts all of it to float32, the weights of all layers once per layer. Integers are moved without
conversion, and reading bits as another dtype is free on every platform.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from palr_jax.trees import PyTree


def to_bits(tree: PyTree) -> PyTree:
    """Every bfloat16 array as uint16, others unchanged. No gradient flows through the bits."""
    return jax.tree.map(lambda x: _cast(x, jnp.bfloat16, jnp.uint16), tree)


def from_bits(tree: PyTree) -> PyTree:
    """The inverse of `to_bits`: uint16 arrays are read as bfloat16."""
    return jax.tree.map(lambda x: _cast(x, jnp.uint16, jnp.bfloat16), tree)


@jax.custom_vjp
def kept(x: jax.Array) -> jax.Array:
    """`x` itself; its bits may be stored for the backward pass instead of recomputed."""
    return named(x, "product")


def named(x: jax.Array, name: str) -> jax.Array:
    """`x` itself, with its bits named for `jax.checkpoint`; not differentiable."""
    return from_bits(checkpoint_name(to_bits(x), name))


kept.defvjp(lambda x: (named(x, "product"), None), lambda _, grad: (grad,))


def _cast(x: jax.Array, old: jax.typing.DTypeLike, new: jax.typing.DTypeLike) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, new) if x.dtype == old else x
