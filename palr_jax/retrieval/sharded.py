"""A sequential retriever whose parameters are divided over devices, also of several processes."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from palr_jax.errors import UserError
from palr_jax.padding import to_multiple
from palr_jax.parallel import processes
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.retrieval import item_tables
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.retrieval.step import Network, Params


def mesh_of(config: RetrieverConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a sequential retriever is trained on.

    Args:
        config: the settings.
        devices: by default those of this process, or of all processes if there are several.

    Raises:
        UserError: there are fewer devices than `config.devices`, or several processes have more.
    """
    if devices is None:
        check_devices(config)
        devices = jax.devices() if processes.are_many() else jax.local_devices()
    shape = MeshConfig(data=config.devices // config.ways, fsdp=config.ways)
    return make_mesh(shape, devices[: config.devices])


def check_devices(config: RetrieverConfig) -> None:
    """Checks that several processes train a sequential retriever on all of their devices.

    Raises:
        UserError: `config.devices` is not the number of these.
    """
    if processes.are_many() and config.devices != (count := jax.device_count()):
        raise UserError(
            f"retriever.devices is {config.devices}, but the processes have {count} devices: set "
            f"it to {count}, or train the retriever in one process, by palr retrieve and, for a "
            "ranker that learns from its candidates, palr show-examples"
        )


def newest(
    graph: nnx.GraphDef[Network], shards: Shards, params: Params, rows: HistoryRows
) -> jax.Array:
    """The vector of the last column of each row, on every device: [B, D].

    Each device computes some of them.

    Args:
        graph: the network's graph definition.
        shards: the mesh.
        params: placed as `retriever_shardings` says.
        rows: host arrays, the same in all processes.
    """
    count = len(rows.item_RT)
    size = to_multiple(count, shards.ways("batch"))
    padded: HistoryRows = jax.tree.map(
        lambda array: np.pad(array, ((0, size - count), (0, 0)), "edge"), rows
    )
    return _newest(graph, shards, count, params, shards.spread(padded))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _newest(
    graph: nnx.GraphDef[Network], shards: Shards, count: int, params: Params, rows: HistoryRows
) -> jax.Array:
    def on_device(params: Params, rows: HistoryRows) -> jax.Array:
        divided, others = item_tables.split_off(params)
        item_M = jnp.asarray(rows.item_RT).reshape(-1)
        looked_up = {name: item_tables.look_up(table, item_M) for name, table in divided.items()}
        here = replace(rows, item_RT=jnp.arange(len(item_M)).reshape(rows.item_RT.shape))
        newest_BD = nnx.merge(graph, others | looked_up)(here, None, newest=1)[:, 0]
        return jax.lax.all_gather(newest_BD, shards.rules.batch, tiled=True)

    return jax.shard_map(
        on_device,
        mesh=shards.mesh,
        in_specs=(item_tables.specs(params, shards), shards.rules.spec("batch", None)),
        out_specs=P(),
        check_vma=False,  # JAX does not infer that all_gather gives replicated values
    )(params, rows)[:count]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def items(graph: nnx.GraphDef[Network], shards: Shards, count: int, params: Params) -> jax.Array:
    """The vectors of the first `count` items, or of all and padding, over all devices: [count, D].

    Args:
        graph: the network's graph definition.
        shards: the mesh, whose number of devices divides `count`.
        count: number of rows.
        params: placed as `retriever_shardings` says.
    """
    return item_tables.by_items(params, shards, count, lambda own: nnx.merge(graph, own).items())
