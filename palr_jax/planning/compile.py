"""Compiles a program for absent chips, and reads its memory and collectives.

XLA's TPU compiler comes with `jax[tpu]` and runs on any machine; it makes the same program, with
the same memory, that the chips would run. XLA has no such compiler for GPUs: the program is
compiled for the same number of CPU devices, which has the same partitioning but computes some types
in wider ones.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from palr_jax.errors import UserError
from palr_jax.parallel.chips import Coordinate, Topology
from palr_jax.planning.hlo import Collective, collectives
from palr_jax.trees import PyTree

# Without these, libtpu searches for local chips and waits.
_NO_LOCAL_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "",
    "JAX_PLATFORMS": "cpu",
}
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on a chip while a program runs.

    Attributes:
        parameters: trained and frozen parameters.
        optimizer: optimizer state.
        inputs: the batch.
        temporaries: activations and everything else allocated within a step.
        code: the program.
    """

    parameters: int
    optimizer: int
    inputs: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Program:
    """The compiler's results for a program.

    Attributes:
        memory: memory of one chip.
        collectives: its collectives; None if the program does not fit and was not compiled.
        compile_seconds: duration of the compilation.
    """

    memory: Memory
    collectives: list[Collective] | None
    compile_seconds: float


def prepare_environment(topology: Topology) -> None:
    """Prepares JAX to compile for a topology; must be called before JAX is used.

    Raises:
        UserError: the chips are TPUs and their compiler is not installed.
    """
    # Overrides the environment of a pod's host, where libtpu would wait for the other hosts.
    os.environ.update(_NO_LOCAL_CHIPS)
    if topology.chip.is_gpu:
        jax.config.update("jax_num_cpu_devices", topology.chips)
    elif importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {topology.name} needs the TPU compiler: pip install 'palr-jax[tpu]'"
        )


def devices(topology: Topology) -> list[jax.Device]:
    """The devices of a topology: compile-only for TPUs, CPU devices in place of GPUs.

    Raises:
        UserError: the TPU compiler does not support this shape.
    """
    if topology.chip.is_gpu:
        return jax.devices("cpu")[: topology.chips]
    kind = topology.name.split(":")[0].lstrip("0123456789x")
    # The two cores of a v4 or v5p act as one device (megacore); for v4 this must be requested.
    options: dict[str, object] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if math.prod(topology.shape) == 1:  # by default a host has 2 x 2 chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{kind}:{'x'.join(map(str, topology.shape))}"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {topology.name} is not supported: {reason}") from None
    return list(described.devices)


def coordinate(device: jax.Device, topology: Topology) -> Coordinate:
    """The coordinate of a device in its topology."""
    if topology.chip.is_gpu:
        return divmod(device.id, topology.shape[0])
    axes = device.coords[: len(topology.shape)]
    return (getattr(device, "slice_index", None) or 0, *axes)


def bytes_per_chip(tree: PyTree) -> int:
    """Bytes on one chip of a tree of arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _bits(leaf.dtype) // 8
        for leaf in jax.tree.leaves(tree)
    )


def _bits(dtype: np.dtype) -> int:
    """Bits of an element in a chip's memory; NumPy stores 4 bits in 8."""
    return 4 if dtype == jnp.uint4 else 8 * np.dtype(dtype).itemsize


def compile_program(
    lowered: jax.stages.Lowered, chips: int, parameters: PyTree, optimizer: PyTree, inputs: PyTree
) -> Program:
    """Compiles a program and reads its memory and its collectives.

    Args:
        lowered: the program; all its arguments are among the following.
        chips: the number of chips that it is partitioned for.
        parameters: shapes with shardings.
        optimizer: shapes with shardings.
        inputs: shapes with shardings.
    """
    held = (bytes_per_chip(parameters), bytes_per_chip(optimizer), bytes_per_chip(inputs))
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = _OUT_OF_MEMORY.search(str(error))
        if not used:
            raise
        wanted = int(float(used[1]) * _UNITS[used[2]])
        rest = max(wanted - sum(held), 0)
        return Program(Memory(*held, rest, 0), None, time.monotonic() - start)
    took = time.monotonic() - start
    stats: Any = compiled.memory_analysis()
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporaries = stats.argument_size_in_bytes - sum(held) + stats.temp_size_in_bytes + fresh
    memory = Memory(*held, temporaries, stats.generated_code_size_in_bytes)
    return Program(memory, collectives(compiled.as_text() or "", chips), took)


def coordinates(order: Sequence[jax.Device], topology: Topology) -> list[Coordinate]:
    """The coordinates of devices, in the order given."""
    return [coordinate(device, topology) for device in order]
