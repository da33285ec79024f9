"""Tables of item vectors, divided by width over the fsdp axis of a mesh.

A device holds some columns of every item's vector. It looks items up by asking the devices of its
fsdp group for their columns of these items, so that no table is ever whole on a device.

Functions on arrays are for the inside of `jax.shard_map`, where tables are the device's columns.

Shapes: M items that a device looks up, W = D / fsdp columns, G devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from palr_jax.parallel.sharding import DATA, FSDP, Shards
from palr_jax.retrieval.item_network import EMBEDDINGS, FEATURES
from palr_jax.trees import KeyPath, PyTree

_NAMES = (EMBEDDINGS, FEATURES)


def retriever_shardings(tree: PyTree, shards: Shards) -> PyTree:
    """The sharding of each array: tables are divided by width, all else is replicated.

    Args:
        tree: parameters or a `RetrieverState`, of arrays or shapes.
        shards: the mesh.
    """

    def sharding(keys: KeyPath, leaf: jax.Array) -> NamedSharding:
        is_table = getattr(keys[-1], "key", None) in _NAMES
        return shards.of(None, "embed") if is_table else shards.of()

    return jax.tree.map_with_path(sharding, tree)


def specs(tree: PyTree, shards: Shards) -> PyTree:
    """The same as partitions, as `jax.shard_map` takes them."""
    return jax.tree.map(lambda sharding: sharding.spec, retriever_shardings(tree, shards))


def split_off(params: dict[str, PyTree]) -> tuple[dict[str, jax.Array], dict[str, PyTree]]:
    """The tables among the parameters of a network, and the other parameters."""
    tables = {name: params[name] for name in _NAMES if name in params}
    return tables, {name: value for name, value in params.items() if name not in tables}


def whole(table_IW: jax.Array) -> jax.Array:
    """The whole table: [I, D]."""
    return jax.lax.all_gather(table_IW, FSDP, axis=1, tiled=True)


def look_up(table_IW: jax.Array, item_M: jax.Array) -> jax.Array:
    """The whole vectors of the items that this device wants: [M, D]."""
    wanted_GM = jax.lax.all_gather(item_M, FSDP)
    columns_GMW = table_IW[wanted_GM]
    return jax.lax.all_to_all(columns_GMW, FSDP, 0, 2, tiled=True)[0]


def add_up(item_M: jax.Array, vector_MD: jax.Array, num_rows: int) -> jax.Array:
    """The table in which the vectors of all devices are added to their items: [num_rows, W].

    They are added in the order of the devices, however these are divided among processes. This is
    how a gradient comes back from `look_up`.
    """
    columns_GMW = jax.lax.all_to_all(vector_MD[None], FSDP, 2, 0, tiled=True)
    item_GM = jax.lax.all_gather(jax.lax.all_gather(item_M, FSDP), DATA, tiled=True)
    columns_GMW = jax.lax.all_gather(columns_GMW, DATA, tiled=True)
    table_IW = jnp.zeros((num_rows, columns_GMW.shape[-1]), vector_MD.dtype)
    return table_IW.at[item_GM].add(columns_GMW)


def by_items(
    params: dict[str, PyTree],
    shards: Shards,
    num_rows: int,
    work: Callable[[dict[str, PyTree]], jax.Array],
) -> jax.Array:
    """Applies `work` to parameters whose tables are divided by rows over all devices, in order.

    Called from outside of `jax.shard_map`.

    Args:
        params: the parameters of a network, placed as `retriever_shardings` says.
        shards: the mesh.
        num_rows: rows of the tables after padding, a multiple of the number of devices; rows
            beyond are left out.
        work: parameters with tables of some rows → an array of as many rows, [..., D].

    Returns:
        The rows of all devices: [num_rows, D].
    """
    copies = shards.mesh.shape[DATA]
    size = num_rows // copies

    def rows_of(table_IW: jax.Array) -> jax.Array:
        padding = max(num_rows - len(table_IW), 0)
        padded_IW = jnp.pad(table_IW, ((0, padding), (0, 0)))
        mine_IW = jax.lax.dynamic_slice_in_dim(padded_IW, jax.lax.axis_index(DATA) * size, size)
        return jax.lax.all_to_all(mine_IW, FSDP, 0, 1, tiled=True)

    def on_device(params: dict[str, PyTree]) -> jax.Array:
        divided, others = split_off(params)
        return work(others | {name: rows_of(table) for name, table in divided.items()})

    return jax.shard_map(
        on_device,
        mesh=shards.mesh,
        in_specs=(specs(params, shards),),
        out_specs=shards.rules.spec("batch", None),
        check_vma=False,
    )(params)
