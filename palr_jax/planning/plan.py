"""`palr plan`: the memory, traffic and time of a config on absent chips.

The train step and the ranking step of a config are compiled for a topology, and the retriever's
train step if the size of the catalog is known. None is run, and no weights are read, only their
shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from palr_jax.config import Config
from palr_jax.decoding.score import score_step
from palr_jax.decoding.score_plan import ScorePlan
from palr_jax.errors import UserError
from palr_jax.io.paths import path_of
from palr_jax.llm.axes import check_divides, shardings
from palr_jax.llm.checkpoints.loading import shape_of_weights
from palr_jax.llm.checkpoints.shapes import SHAPES
from palr_jax.llm.checkpoints.weights import abstract
from palr_jax.llm.compute import compute_over
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.flops import causal_pairs, rank_flops
from palr_jax.llm.llama import Llama
from palr_jax.llm.quantize import bytes_per_weight
from palr_jax.parallel.chips import Topology, parse_topology
from palr_jax.parallel.sharding import AXES, Shards, make_mesh
from palr_jax.planning.compile import (
    Program,
    bytes_per_chip,
    compile_program,
    coordinate,
    coordinates,
    devices,
    prepare_environment,
)
from palr_jax.planning.retrieval import Retrieval, plan_retrieval
from palr_jax.planning.roofline import Seconds, Work, collective_seconds, mfu_bound, seconds
from palr_jax.planning.suggest import Choice, fastest_mesh, largest_batch, traffic_seconds
from palr_jax.ranking.base_model import scratch_shape
from palr_jax.ranking.batches import prompt_width
from palr_jax.training.feed import check_rows
from palr_jax.training.step import Batch, abstract_state, train_step
from palr_jax.training.trained import trainable
from palr_jax.trees import PyTree, State, split_off

# Trie nodes fed to the model, and edges scored, for 50 candidates, rounded up.
_FED, _EDGES = 32, 128


@dataclass(frozen=True)
class Ranking:
    """The ranking step of a plan.

    Attributes:
        users: users of a batch.
        length: prompt tokens.
        program: the compiled program.
        seconds: lower bound of the duration of a step.
    """

    users: int
    length: int
    program: Program
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a config needs on a topology.

    Attributes:
        topology: the chips.
        ranker: a short description of the model.
        mesh: chips along data, fsdp and tensor.
        work: the train step.
        train: the compiled train step.
        seconds: the roofline of the train step.
        ranking: the ranking step.
        largest_batch: number of rows that fit, by formula.
        fastest: the fastest mesh that fits, by formula; None if no mesh fits.
        retrieval: the retriever's train step; None if the size of the catalog was not given.
    """

    topology: Topology
    ranker: str
    mesh: dict[str, int]
    work: Work
    train: Program
    seconds: Seconds
    ranking: Ranking
    largest_batch: int
    fastest: Choice | None
    retrieval: Retrieval | None

    @property
    def fits(self) -> bool:
        """Whether all steps fit in a chip's memory."""
        programs = [self.train, self.ranking.program]
        programs += [self.retrieval.program] if self.retrieval else []
        limit = self.topology.chip.hbm_bytes
        return all(one.collectives is not None and one.memory.peak <= limit for one in programs)

    @property
    def tokens_per_second(self) -> float:
        """Upper bound of the training tokens per second."""
        return self.work.tokens / self.seconds.step

    @property
    def mfu_bound(self) -> float:
        """Upper bound of the model FLOPs utilisation (MFU) of training."""
        return mfu_bound(self.work, self.topology, self.seconds.step)


def plan(config: Config, topology_name: str | None, items: int | None = None) -> Plan:
    """Compiles the steps of a config for a topology.

    Must be called before JAX is used for anything else in the process.

    Args:
        config: its `ranker`, `finetune`, `evaluate`, `retriever` and `mesh` are used.
        topology_name: the chips; by default `mesh.topology`.
        items: items of the catalog, for the retriever's train step; None leaves it out.

    Raises:
        UserError: the topology does not exist, its compiler is not installed, the shape of the
            ranker is unknown, the mesh does not use all chips or does not divide the batch or the
            model, or as `plan_retrieval`.
    """
    name = topology_name or config.mesh.topology
    if name is None:
        raise UserError("name the chips to plan for: --topology v5e:4x4, or mesh.topology")
    topology = parse_topology(name)
    prepare_environment(topology)
    chips = devices(topology)
    shape, lora = shape_of(config), config.ranker.lora
    shards = Shards(make_mesh(config.mesh, chips))
    check_divides(shape, shards, config.ranker.quantize)
    check_rows(config.finetune, shards)
    order = coordinates(list(shards.mesh.devices.flat), topology)
    mesh = dict(zip(AXES, config.mesh.shape, strict=True))
    tuning = config.finetune
    # Before the ranker's, which takes longer.
    retrieval = None if items is None else plan_retrieval(config, items, topology, chips)
    work = Work(
        shape, lora, tuning.remat, tuning.batch_size, tuning.length, tuning.label_length,
        flash=True, accumulate=tuning.accumulate,
        weight_bytes=bytes_per_weight(config.ranker.quantize),
    )  # fmt: skip
    ranker = config.ranker
    model = abstract(shape, lora, compute_over(shards), ranker.quantize, jnp.dtype(ranker.dtype))
    train = _compile_train(config, model, shards)
    if train.collectives is None:
        grid = _coordinate_grid(shards.mesh.devices, topology)
        traffic = traffic_seconds(work, mesh, topology, grid)
    else:
        traffic = collective_seconds(train.collectives, topology, order)

    def coordinates_of(shape_of_mesh: Mapping[str, int]) -> np.ndarray:
        data, fsdp, tensor = (shape_of_mesh[axis] for axis in AXES)
        other = replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor)
        return _coordinate_grid(make_mesh(other, chips).devices, topology)

    return Plan(
        topology=topology,
        ranker=_in_words(shape, config),
        mesh=mesh,
        work=work,
        train=train,
        seconds=seconds(work, topology, mesh, traffic),
        ranking=_plan_ranking(config, model, shards, topology),
        largest_batch=largest_batch(work, mesh, train.memory, topology.chip.hbm_bytes),
        fastest=fastest_mesh(work, mesh, train.memory, topology, coordinates_of),
        retrieval=retrieval,
    )


def shape_of(config: Config) -> LlamaConfig:
    """The shape of the ranker; absent weights are looked up by the name of their folder."""
    ranker = config.ranker
    if not ranker.weights:
        return scratch_shape(ranker, ranker.size.vocab_size, config.finetune.length)
    path = path_of(ranker.weights)
    if path.exists():
        return shape_of_weights(path)
    name = path.name.lower()
    if name not in SHAPES:
        raise UserError(
            f"{path} does not exist, and {path.name} is not a known shape ({', '.join(SHAPES)}): "
            "put the model's config.json into that folder"
        )
    return SHAPES[name]


def _in_words(shape: LlamaConfig, config: Config) -> str:
    lora = config.ranker.lora
    trained = "all trained" if lora is None else f"LoRA rank {lora.rank}"
    count = sum(leaf.size for leaf in jax.tree.leaves(
        nnx.state(nnx.eval_shape(lambda: Llama(shape, nnx.Rngs(params=0))))
    ))  # fmt: skip
    kind = config.ranker.quantize
    linears = "" if kind == "none" else f", linears in {kind}"
    return f"{count / 1e9:.2f} billion parameters in {config.ranker.dtype}{linears}, {trained}"


def _compile_train(config: Config, model: Llama, shards: Shards) -> Program:
    tuning = config.finetune
    graph, params, frozen = split_off(model, trainable(model))
    frozen = _sharded_shapes(frozen, shards, config.ranker.dtype)
    state = abstract_state(params, tuning, shards)
    tokens_BT = _rows(shards, tuning.batch_size, tuning.length)
    label_BM = _rows(shards, tuning.batch_size, tuning.label_length)
    batch = Batch(tokens_BT, tokens_BT, tokens_BT, label_BM, label_BM, label_BM)
    lowered = train_step.lower(graph, tuning, state, frozen, batch)
    held = (state.step, state.params, frozen)
    return compile_program(lowered, shards.mesh.size, held, state.optimizer, batch)


def _plan_ranking(config: Config, model: Llama, shards: Shards, topology: Topology) -> Ranking:
    users, ways = config.evaluate.batch_size, shards.ways("batch")
    if users % ways:
        raise UserError(
            f"evaluate.batch_size ({users}) does not divide over data {config.mesh.data} x fsdp "
            f"{config.mesh.fsdp} = {ways} devices"
        )
    length = prompt_width(config.instruct.length)
    _, adapters, base = split_off(model, trainable(model))
    weights = nnx.merge_state(
        _sharded_shapes(adapters, shards, "float32"),
        _sharded_shapes(base, shards, config.ranker.dtype),
    )
    widths = (_FED,) * 3 + (_EDGES,) * 4 + (config.retriever.candidates,) * 2
    plan = ScorePlan(*(_rows(shards, users, width) for width in widths))
    tokens_BT, length_B = _rows(shards, users, length), _rows(shards, users)
    lowered = score_step.lower(nnx.graphdef(model), weights, tokens_BT, length_B, plan)
    held = (tokens_BT, length_B, plan)
    program = compile_program(lowered, shards.mesh.size, weights, (), held)
    return Ranking(
        users, length, program, _ranking_seconds(config, model, program, shards, topology, length)
    )


def _ranking_seconds(
    config: Config, model: Llama, program: Program, shards: Shards, topology: Topology, length: int
) -> float:
    """Lower bound of a ranking step: its products, reading its weights once, its collectives."""
    users, chip = config.evaluate.batch_size, topology.chip
    pairs = users * causal_pairs([length + _FED])
    flops = rank_flops(
        model.config, config.ranker.lora, users * (length + _FED), users * _EDGES, pairs
    )
    held = bytes_per_chip(_sharded_shapes(nnx.state(model), shards, config.ranker.dtype))
    read = held * config.mesh.fsdp  # each chip reads the gathered weights
    order = coordinates(list(shards.mesh.devices.flat), topology)
    traffic = collective_seconds(program.collectives or [], topology, order)
    return max(flops / topology.chips / chip.flops, read / chip.hbm_bandwidth, traffic)


def _sharded_shapes(params: State, shards: Shards, dtype: str) -> State:
    """The parameters as shapes with dtype and sharding; quantised weights keep theirs."""

    def shape(leaf: jax.ShapeDtypeStruct, at: NamedSharding) -> jax.ShapeDtypeStruct:
        kind = jnp.dtype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=at)

    return jax.tree.map(shape, params, shardings(shards, params))


def _rows(shards: Shards, *shape: int) -> PyTree:
    sharding = shards.of("batch", *[None] * (len(shape) - 1))
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)


def _coordinate_grid(mesh: np.ndarray, topology: Topology) -> np.ndarray:
    """The coordinates of a mesh's chips, an object array of its shape."""
    grid = np.empty(mesh.shape, object)
    for index in np.ndindex(mesh.shape):
        grid[index] = coordinate(mesh[index], topology)
    return grid
