"""Devices in a mesh, and the one table that says which of its axes divides which axis of an array.

The mesh has three axes: `data` divides rows and repeats the weights, `fsdp` divides rows and
weights, `tensor` divides heads and the feed-forward. Models name the logical axes of their arrays;
`Rules` alone maps them to the mesh.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from palr_jax.errors import UserError
from palr_jax.parallel.config import MeshConfig

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
# What divides an axis of an array, the coarsest first.
MeshAxes = tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """Which axes of the mesh divide each logical axis of an array.

    Attributes:
        batch: rows, and tokens of rows end to end.
        length: tokens of a row.
        layer: of stacked parameters.
        width: the residual stream of activations.
        embed: the residual stream's side of a parameter; the width of a retriever's items.
        vocab: rows of the embedding and of the LM head, and logits.
        heads: query heads.
        kv_heads: key and value heads.
        mlp: the feed-forward.
        adapter: the side of a low-rank adapter that lies along heads or the feed-forward.
        lora_rank: the inner side of an adapter.
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
        """How an array with these logical axes is divided; None is an axis that never is.

        Args:
            axes: one for each axis of the array.
            whole_along: an axis of the mesh that divides nothing this time.

        Raises:
            ValueError: a logical axis is not in the table, or two of them are divided by one axis
                of the mesh.
        """
        known = {field.name for field in fields(self)}
        unknown = [axis for axis in axes if axis is not None and axis not in known]
        if unknown:
            raise ValueError(f"no rule for the axis {unknown[0]}; there are {', '.join(known)}")
        parts: list[MeshAxes] = [() if axis is None else getattr(self, axis) for axis in axes]
        used = [part for axes_of in parts for part in axes_of]
        twice = [part for part in used if used.count(part) > 1]
        if twice:
            raise ValueError(f"the mesh axis {twice[0]} divides two of the axes {axes}")
        kept = (tuple(name for name in axes_of if name != whole_along) for axes_of in parts)
        return PartitionSpec(*(axes_of or None for axes_of in kept))


@dataclass(frozen=True)
class Shards:
    """A mesh and the rules that divide arrays over it.

    Attributes:
        mesh: of devices, with the axes data, fsdp and tensor.
        rules: the table.
    """

    mesh: Mesh
    rules: Rules = Rules()

    def of(self, *axes: str | None) -> NamedSharding:
        """Which device holds which part of an array with these logical axes.

        Raises:
            ValueError: as `Rules.spec`.
        """
        return NamedSharding(self.mesh, self.rules.spec(*axes))

    def gathered(self, *axes: str | None) -> NamedSharding:
        """As `of`, with nothing divided along fsdp: how weights are when they are used."""
        return NamedSharding(self.mesh, self.rules.spec(*axes, whole_along=FSDP))

    def ways(self, axis: str) -> int:
        """In how many parts a logical axis is divided."""
        return int(np.prod([self.mesh.shape[name] for name in getattr(self.rules, axis)]))

    def spread(self, rows: Any) -> Any:
        """Arrays whose first axis is rows, each device with its rows.

        Args:
            rows: a tree of host arrays; every process has all of them.
        """
        if self.is_one_device:
            return rows

        def spread(array: np.ndarray) -> jax.Array:
            sharding = self.of("batch", *[None] * (array.ndim - 1))
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(spread, rows)

    @property
    def is_one_device(self) -> bool:
        """Whether nothing is divided at all."""
        return self.mesh.size == 1


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of an array, in every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices so that neighbours in the mesh are neighbours on the interconnect.

    Args:
        config: the shape of the mesh. Without any division it takes the first device, of each
            process its own, whatever else is there.
        devices: by default all devices of all processes.

    Raises:
        UserError: there are more or fewer devices than the mesh has places.
    """
    if devices is None:
        devices = jax.local_devices() if config.devices == 1 else jax.devices()
    there = list(devices)
    if config.devices == 1 and len({device.process_index for device in there}) == 1:
        there = there[:1]
    if config.devices != len(there):
        shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, config.shape, strict=True))
        raise UserError(
            f"mesh: {shape} is {config.devices} devices, but {len(there)} are there: "
            "their product must be that number"
        )
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(_arranged(config, there), AXES, axis_types=types)


def _arranged(config: MeshConfig, devices: list[jax.Device]) -> np.ndarray:
    if devices[0].platform == "cpu":  # they have no interconnect
        return np.array(devices, dtype=object).reshape(config.shape)
    if config.slices == 1:
        return mesh_utils.create_device_mesh(config.shape, devices, allow_split_physical_axes=True)
    within = (config.data // config.slices, config.fsdp, config.tensor)
    # GPUs do not say which machine they are in, but each process belongs to one.
    by_process = getattr(devices[0], "slice_index", None) is None
    return mesh_utils.create_hybrid_device_mesh(
        within,
        (config.slices, 1, 1),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )
