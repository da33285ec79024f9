"""Sums over devices, added up in the order of the devices.

`psum` leaves the order to the library that carries it out, and libraries between processes take
another one than the library within a process. These sums have the same bits however the devices are
divided among processes. They receive no more than `psum` does.

All are for the inside of `jax.shard_map`. Shapes: I rows, D their width.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from palr_jax.parallel.sharding import DATA, FSDP
from palr_jax.trees import PyTree

_ALL = (DATA, FSDP)


def total(tree: PyTree) -> PyTree:
    """The sum over all devices of a tree of arrays of one type, on each of them."""
    flat, restore = ravel_pytree(tree)
    devices = jax.lax.axis_size(_ALL)
    parts = jnp.pad(flat, (0, -len(flat) % devices)).reshape(devices, -1)
    mine = jax.lax.all_to_all(parts, _ALL, 0, 0, tiled=True).sum(0)
    return restore(jax.lax.all_gather(mine, _ALL, tiled=True)[: len(flat)])


def total_columns(x_ID: jax.Array) -> jax.Array:
    """The sum over all devices of tables; each keeps its columns along fsdp: [I, D / fsdp].

    Args:
        x_ID: the whole table of this device.
    """
    size, width = x_ID.shape
    copies, ways = jax.lax.axis_size(DATA), jax.lax.axis_size(FSDP)
    # Each device sums up its columns of some rows, and gets those of the other rows afterwards.
    padded = jnp.pad(x_ID, ((0, -size % copies), (0, 0)))
    parts = padded.reshape(copies, -1, ways, width // ways).swapaxes(1, 2)
    parts = parts.reshape(copies * ways, -1, width // ways)
    mine = jax.lax.all_to_all(parts, _ALL, 0, 0, tiled=True).sum(0)
    return jax.lax.all_gather(mine, DATA, tiled=True)[:size]
