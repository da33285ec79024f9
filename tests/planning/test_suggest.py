"""Suggestions, against a search by hand."""

from collections.abc import Mapping

import numpy as np

from palr_jax.llm.checkpoints.shapes import SHAPES
from palr_jax.llm.config import LoRAConfig
from palr_jax.parallel.chips import parse_topology
from palr_jax.planning.compile import Memory
from palr_jax.planning.roofline import Work
from palr_jax.planning.suggest import fastest_mesh, largest_batch, meshes

MIB, GIB = 2**20, 2**30
TOPOLOGY = parse_topology("v5e:4x4")
WORK = Work(SHAPES["llama-7b"], LoRAConfig(rank=16), "full", 32, 1024, 384, flash=True)
MESH = {"data": 1, "fsdp": 16, "tensor": 1}
# The compiler's result for this step on these chips.
MEMORY = Memory(int(0.79 * GIB), 20 * MIB, 0, int(1.75 * GIB), 44 * MIB)


def coordinates_of(mesh: Mapping[str, int]) -> np.ndarray:
    found = np.empty(16, object)
    for chip in range(16):
        found[chip] = (0, *divmod(chip, 4))
    return found.reshape(mesh["data"], mesh["fsdp"], mesh["tensor"])


def test_the_largest_batch_fills_a_chip_and_no_more() -> None:
    rows = largest_batch(WORK, MESH, MEMORY, 16 * GIB)
    assert rows % 16 == 0
    assert rows > 8 * 16
    assert largest_batch(WORK, MESH, MEMORY, 2 * 16 * GIB) > 1.9 * rows
    assert largest_batch(WORK, MESH, MEMORY, GIB) == 0
    parts = Work(**{**vars(WORK), "rows": 64, "accumulate": 2})
    assert largest_batch(parts, MESH, MEMORY, 16 * GIB) == 2 * rows


def test_meshes_divide_rows_model_and_slices() -> None:
    found = list(meshes(WORK, TOPOLOGY))
    assert MESH in found
    assert all(np.prod(list(mesh.values())) == 16 for mesh in found)
    two = list(meshes(WORK, parse_topology("2xv5e:4x4")))
    assert two
    assert all(mesh["data"] % 2 == 0 for mesh in two)
    odd = Work(**{**vars(WORK), "rows": 24})
    assert all(24 % (mesh["data"] * mesh["fsdp"]) == 0 for mesh in meshes(odd, TOPOLOGY))


def test_the_fastest_mesh_fits_and_sends_least() -> None:
    found = fastest_mesh(WORK, MESH, MEMORY, TOPOLOGY, coordinates_of)
    assert found is not None
    assert found.peak_bytes < 0.95 * 16 * GIB
    # A step that is bound by its products is as fast on every mesh without tensor parallelism.
    assert found.mesh["tensor"] == 1
    heavy = Memory(8 * GIB, 20 * MIB, 0, int(1.75 * GIB), 44 * MIB)  # weights of 128 GiB
    crowded = fastest_mesh(WORK, MESH, heavy, TOPOLOGY, coordinates_of)
    assert crowded is not None
    assert crowded.mesh["fsdp"] * crowded.mesh["tensor"] == 16
    assert (
        fastest_mesh(WORK, MESH, Memory(16 * GIB, 0, 0, GIB, 0), TOPOLOGY, coordinates_of) is None
    )
