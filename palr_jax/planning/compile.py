"""Compiles a program for chips that are not here, and reads what it will take of them.

XLA's TPU compiler comes with `jax[tpu]` and runs on any machine; it gives the very program, with
the very memory, that the chips would run. For GPUs there is no such compiler: the program is
compiled for as many CPU devices, which is partitioned alike but computes some types in wider ones.
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
import numpy as np
from jax.experimental import topologies

from palr_jax.errors import UserError
from palr_jax.parallel.chips import Place, Topology
from palr_jax.planning.hlo import Collective, collectives

# Without these the TPU's library looks for chips, and waits.
_NO_CHIPS_HERE = {
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
        parameters: trained and frozen.
        optimizer: its state.
        inputs: the batch.
        temporaries: activations and everything else that lives within a step.
        code: the program.
    """

    parameters: int
    optimizer: int
    inputs: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All together."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Program:
    """What a compiler says of a program.

    Attributes:
        memory: of a chip.
        collectives: what chips send each other; None if the program is too large to be made.
        compile_seconds: that the compiler took.
    """

    memory: Memory
    collectives: list[Collective] | None
    compile_seconds: float


def prepare_environment(topology: Topology) -> None:
    """Makes JAX ready to compile for a topology; to be called before JAX is used.

    Raises:
        UserError: the topology is of TPUs and their compiler is not installed.
    """
    # Over what a host of a pod finds in its environment, whose others would be waited for.
    os.environ.update(_NO_CHIPS_HERE)
    if topology.chip.is_gpu:
        jax.config.update("jax_num_cpu_devices", topology.chips)
    elif importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {topology.name} needs the TPU compiler: pip install 'palr-jax[tpu]'"
        )


def devices(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, to compile for and not to run on.

    Raises:
        UserError: chips are not made in this shape.
    """
    if topology.chip.is_gpu:
        return jax.devices("cpu")[: topology.chips]
    kind = topology.name.split(":")[0].lstrip("0123456789x")
    # Two cores of a v4 and of a v5p work as one; a v4 must be told.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{kind}:{'x'.join(map(str, topology.shape))}"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {topology.name} cannot be had: {reason}") from None
    return list(described.devices)


def place(device: jax.Device, topology: Topology) -> Place:
    """Where a device stands in its topology."""
    if topology.chip.is_gpu:
        return divmod(device.id, topology.shape[0])
    axes = device.coords[: len(topology.shape)]
    return (getattr(device, "slice_index", None) or 0, *axes)


def bytes_per_chip(tree: Any) -> int:
    """Bytes on one chip of arrays, or of shapes with their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def compile_program(
    lowered: jax.stages.Lowered, chips: int, parameters: Any, optimizer: Any, inputs: Any
) -> Program:
    """Compiles a program and reads its memory and its collectives.

    Args:
        lowered: the program, of arguments that are all among the following.
        chips: how many it is partitioned for.
        parameters: shapes with shardings.
        optimizer: the same.
        inputs: the same.
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


def places(order: Sequence[jax.Device], topology: Topology) -> list[Place]:
    """Where the devices of a mesh stand, in the order of the mesh."""
    return [place(device, topology) for device in order]
