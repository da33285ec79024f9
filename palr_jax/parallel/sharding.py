"""The mesh of devices, and the table that maps logical axes of arrays to its axes.

The mesh has three axes: `data` shards rows and replicates weights, `fsdp` shards rows and weights,
`tensor` shards heads and the feed-forward network. Models name the logical axes of their arrays;
only `Rules` maps them to the mesh.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from palr_jax.errors import UserError
from palr_jax.parallel.config import MeshConfig
from palr_jax.trees import PyTree

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
# The mesh axes that shard an axis of an array, major to minor.
MeshAxes = tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """The mesh axes that shard each logical axis of an array.

    Attributes:
        batch: rows, or tokens of concatenated rows.
        length: tokens of a row.
        layer: layers of stacked parameters.
        width: the residual stream of activations.
        embed: the residual-stream axis of a parameter; the width of a retriever's item vectors.
        vocab: rows of the embedding and of the LM head, and logits.
        heads: query heads.
        kv_heads: key and value heads.
        mlp: the feed-forward width.
        adapter: the axis of a low-rank adapter along heads or the feed-forward width.
        lora_rank: the rank axis of an adapter.
    """

    batch: MeshAxes = (DATA, FSDP)
    length: MeshAxes = ()
    layer: MeshAxes = ()
    width: MeshAxes = ()
    embed: MeshAxes = (FSDP,)
    vocab: MeshAxes = (TENSOR,)
    heads: MeshAxes = (TENSOR,)
    kv_heads: MeshAxes = (TENSOR,)
    mlp: MeshAxes = (TENSOR,)
    adapter: MeshAxes = (TENSOR, FSDP)
    lora_rank: MeshAxes = ()

    def spec(self, *axes: str | None, whole_along: str | None = None) -> PartitionSpec:
        """The partition of an array with these logical axes.

        Args:
            axes: one per axis of the array; None for an axis that is never sharded.
            whole_along: a mesh axis to leave out, along which the array is gathered.

        Raises:
            ValueError: a logical axis is not in the table, or one mesh axis would shard two axes.
        """
        known = {field.name for field in fields(self)}
        unknown = [axis for axis in axes if axis is not None and axis not in known]
        if unknown:
            raise ValueError(f"no rule for the axis {unknown[0]}; known axes: {', '.join(known)}")
        parts: list[MeshAxes] = [() if axis is None else getattr(self, axis) for axis in axes]
        used = [part for axes_of in parts for part in axes_of]
        twice = [part for part in used if used.count(part) > 1]
        if twice:
            raise ValueError(f"the mesh axis {twice[0]} divides two of the axes {axes}")
        kept = (tuple(name for name in axes_of if name != whole_along) for axes_of in parts)
        return PartitionSpec(*(axes_of or None for axes_of in kept))


@dataclass(frozen=True)
class Shards:
    """A mesh and the rules that shard arrays over it.

    Attributes:
        mesh: devices along the axes data, fsdp and tensor.
        rules: the table.
    """

    mesh: Mesh
    rules: Rules = Rules()

    def of(self, *axes: str | None) -> NamedSharding:
        """The sharding of an array with these logical axes.

        Raises:
            ValueError: as `Rules.spec`.
        """
        return NamedSharding(self.mesh, self.rules.spec(*axes))

    def gathered(self, *axes: str | None) -> NamedSharding:
        """The same, but gathered along fsdp: the sharding of weights in use."""
        return NamedSharding(self.mesh, self.rules.spec(*axes, whole_along=FSDP))

    def ways(self, axis: str) -> int:
        """The number of shards of a logical axis."""
        return int(np.prod([self.mesh.shape[name] for name in getattr(self.rules, axis)]))

    def spread(self, rows: PyTree) -> PyTree:
        """Shards a tree of host arrays along their leading axis, the rows.

        Args:
            rows: a tree of host arrays, complete in every process.
        """
        if self.is_one_device:
            return rows

        def spread(array: np.ndarray) -> jax.Array:
            sharding = self.of("batch", *[None] * (array.ndim - 1))
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(spread, rows)

    @property
    def is_one_device(self) -> bool:
        """Whether the mesh has a single device, so that arrays are not sharded."""
        return self.mesh.size == 1


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on the host, in every process; an all-gather."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices so that neighbours in the mesh are neighbours on the interconnect.

    Args:
        config: the shape of the mesh. A mesh of one device uses the first device of each process
            and ignores the others.
        devices: by default all devices of all processes.

    Raises:
        UserError: the number of devices is not that of the mesh.
    """
    if devices is None:
        devices = jax.local_devices() if config.devices == 1 else jax.devices()
    available = list(devices)
    if config.devices == 1 and len({device.process_index for device in available}) == 1:
        available = available[:1]
    if config.devices != len(available):
        shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, config.shape, strict=True))
        raise UserError(
            f"mesh: {shape} is {config.devices} devices, but {len(available)} are available: "
            "their product must be that number"
        )
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(_arranged(config, available), AXES, axis_types=types)


def _arranged(config: MeshConfig, devices: list[jax.Device]) -> np.ndarray:
    if devices[0].platform == "cpu":  # CPU devices have no interconnect
        return np.array(devices, dtype=object).reshape(config.shape)
    if config.slices == 1:
        return mesh_utils.create_device_mesh(config.shape, devices, allow_split_physical_axes=True)
    within = (config.data // config.slices, config.fsdp, config.tensor)
    # GPUs have no slice_index, but each process runs on one machine.
    by_process = getattr(devices[0], "slice_index", None) is None
    return mesh_utils.create_hybrid_device_mesh(
        within,
        (config.slices, 1, 1),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )
