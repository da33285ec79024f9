"""The retriever's part of `palr plan`: its train step on absent chips."""

from dataclasses import dataclass

import jax

from palr_jax.config import Config
from palr_jax.errors import UserError
from palr_jax.parallel.chips import Topology
from palr_jax.parallel.sharding import DATA, FSDP, Shards
from palr_jax.planning.compile import Program, bytes_per_chip, compile_program, coordinates
from palr_jax.planning.roofline import collective_seconds
from palr_jax.retrieval.models import MODELS
from palr_jax.retrieval.sequential import Sequential
from palr_jax.retrieval.sharded import mesh_of


@dataclass(frozen=True)
class Retrieval:
    """The retriever's train step of a plan.

    Attributes:
        model: the retriever.
        items: items of the catalog.
        rows: rows of a batch.
        length: items of a row.
        mesh: chips along data and fsdp.
        program: the compiled step.
        seconds: lower bound of its duration: the state is read and written once, and what the chips
            send each other.
    """

    model: str
    items: int
    rows: int
    length: int
    mesh: dict[str, int]
    program: Program
    seconds: float


def plan_retrieval(
    config: Config, items: int, topology: Topology, chips: list[jax.Device]
) -> Retrieval:
    """Compiles the retriever's train step for a topology.

    Args:
        config: its `retriever` is used.
        items: items of the catalog.
        topology: the chips.
        chips: their devices.

    Raises:
        UserError: the model does not read histories in order, or takes other chips.
    """
    settings = config.retriever
    if settings.devices not in (1, len(chips)):
        raise UserError(
            f"retriever.devices is {settings.devices}, but {topology.name} has {len(chips)} chips: "
            "set it to that, or to 1 for training on one of them"
        )
    retriever = MODELS[settings.model](settings, items, config.seed)
    if not isinstance(retriever, Sequential):
        raise UserError(f"retriever.model {settings.model} is not planned: leave out --items")
    shards = Shards(mesh_of(settings, chips))
    lowered, state, rows = retriever.lowered_step(shards)
    held = (state.params, state.average)
    program = compile_program(lowered, shards.mesh.size, held, state.moments, rows)
    order = coordinates(list(shards.mesh.devices.flat), topology)
    moved = 2 * bytes_per_chip(state) / topology.chip.hbm_bandwidth
    traffic = collective_seconds(program.collectives or [], topology, order)
    return Retrieval(
        model=settings.model,
        items=items,
        rows=settings.batch_size,
        length=settings.length,
        mesh={axis: shards.mesh.shape[axis] for axis in (DATA, FSDP)},
        program=program,
        seconds=max(moved, traffic),
    )
