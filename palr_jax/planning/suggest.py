"""The largest batch and the fastest mesh, extrapolated from one compiled program.

Compiling a program for every mesh would take too long, so the formulas of `roofline` are scaled to
the memory of the compiled one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from palr_jax.parallel.chips import Coordinate, Topology
from palr_jax.planning.compile import Memory
from palr_jax.planning.roofline import Seconds, Work, seconds, temporary_bytes, traffic_bytes

# Compilers leave some memory unused, and the formulas are approximate.
_USABLE = 0.95
_MOST_TENSOR = 8

Mesh = Mapping[str, int]


@dataclass(frozen=True)
class Choice:
    """A mesh and its estimated cost.

    Attributes:
        mesh: chips along data, fsdp and tensor.
        peak_bytes: peak memory of a chip.
        seconds: roofline of a step.
    """

    mesh: Mesh
    peak_bytes: float
    seconds: Seconds


def largest_batch(work: Work, mesh: Mesh, memory: Memory, hbm_bytes: int) -> int:
    """Rows of the largest batch that fits; 0 if one row per chip does not fit."""
    chips = mesh["data"] * mesh["fsdp"]
    fixed, row = (part * _scale(work, mesh, memory) for part in temporary_bytes(work, mesh))
    held = memory.parameters + memory.optimizer + memory.code
    room = hbm_bytes * _USABLE - held - fixed
    at_a_time = max(int(room / (row + memory.inputs / (work.rows / chips))), 0) * chips
    return at_a_time * work.accumulate


def fastest_mesh(
    work: Work,
    compiled: Mesh,
    memory: Memory,
    topology: Topology,
    coordinates_of: Callable[[Mesh], np.ndarray],
) -> Choice | None:
    """The fastest mesh that fits; None if no mesh fits.

    Ties go to the mesh with less tensor, then less fsdp, which sends less.

    Args:
        work: the step.
        compiled: the mesh that was compiled.
        memory: the memory of the compiled program.
        topology: the chips.
        coordinates_of: mesh → its chips' coordinates, an object array [data, fsdp, tensor].
    """
    scale = _scale(work, compiled, memory)
    sharded = (memory.parameters + memory.optimizer) * compiled["fsdp"] * compiled["tensor"]
    best: Choice | None = None
    for mesh in meshes(work, topology):
        rows = work.rows_at_a_time / (mesh["data"] * mesh["fsdp"])
        fixed, row = temporary_bytes(work, mesh)
        held = sharded / mesh["fsdp"] / mesh["tensor"] + memory.code
        peak = held + scale * (fixed + row * rows)
        if peak > topology.chip.hbm_bytes * _USABLE:
            continue
        traffic = traffic_seconds(work, mesh, topology, coordinates_of(mesh))
        choice = Choice(mesh, peak, seconds(work, topology, mesh, traffic))
        if best is None or choice.seconds.step < best.seconds.step:
            best = choice
    return best


def meshes(work: Work, topology: Topology) -> Iterator[Mesh]:
    """The meshes that divide the batch and the model."""
    chips = topology.chips
    for tensor in range(1, min(chips, _MOST_TENSOR) + 1):
        if chips % tensor or work.config.num_kv_heads % tensor or work.config.ffn_dim % tensor:
            continue
        share = chips // tensor
        if work.rows_at_a_time % share:
            continue
        for fsdp in range(1, share + 1):
            # Each slice holds all weights, so that only gradients use the network.
            within = share % fsdp == 0 and (share // fsdp) % topology.slices == 0
            if within and work.config.dim % fsdp == 0:
                yield {"data": share // fsdp, "fsdp": fsdp, "tensor": tensor}


def _scale(work: Work, mesh: Mesh, memory: Memory) -> float:
    """The compiled program's temporaries, divided by the formula's."""
    fixed, row = temporary_bytes(work, mesh)
    rows = work.rows_at_a_time / (mesh["data"] * mesh["fsdp"])
    return memory.temporaries / (fixed + row * rows)


def traffic_seconds(work: Work, mesh: Mesh, topology: Topology, coordinates: np.ndarray) -> float:
    """Seconds of the collectives, by formula; `coordinates` as from `coordinates_of`."""
    first: dict[str, list[Coordinate]] = {
        "data": list(coordinates[:, 0, 0]),
        "fsdp": list(coordinates[0, :, 0]),
        "tensor": list(coordinates[0, 0, :]),
    }
    return sum(
        received / topology.bandwidth(first[axis])
        for axis, received in traffic_bytes(work, mesh).items()
        if received
    )
