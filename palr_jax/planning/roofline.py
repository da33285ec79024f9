"""Lower bound of the time of a train step: products, memory and interconnect, by formula.

Everything is per chip. The formulas assume that the three overlap perfectly and run at their peaks,
so a step takes as long as the slowest of them; real steps take longer. A row counts as one example;
packed rows have fewer attention pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat
from palr_jax.llm.flops import (
    adapter_parameters,
    causal_pairs,
    executed_train_flops,
    linear_parameters,
    linear_shapes,
    train_flops,
)
from palr_jax.parallel.chips import Coordinate, Topology
from palr_jax.planning.hlo import Collective

_BF16, _FLOAT = 2, 4


@dataclass(frozen=True)
class Work:
    """A train step.

    Attributes:
        config: the shape of the model.
        lora: adapters on frozen weights; None if all weights are trained.
        remat: what the backward pass recomputes.
        rows: rows of the batch.
        length: tokens of a row.
        label_length: label tokens of a row.
        flash: whether attention is fused and does not write its scores to memory.
        accumulate: number of parts that the batch is computed in, one after the other.
        weight_bytes: bytes of a weight of a linear in memory, with its share of a scale.
    """

    config: LlamaConfig
    lora: LoRAConfig | None
    remat: Remat
    rows: int
    length: int
    label_length: int
    flash: bool
    accumulate: int = 1
    weight_bytes: float = _BF16

    @property
    def rows_at_a_time(self) -> int:
        """Rows of one of the `accumulate` parts."""
        return self.rows // self.accumulate

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return self.rows * self.length

    @property
    def pairs(self) -> int:
        """(Query, key) pairs of the batch, with one example per row."""
        return self.rows * causal_pairs([self.length])

    def flops(self) -> float:
        """Model FLOPs, the numerator of MFU."""
        labels = self.rows * self.label_length
        return train_flops(self.config, self.lora, self.tokens, labels, self.pairs)

    def executed_flops(self) -> float:
        """FLOPs that the chips execute, including recomputation."""
        labels = self.rows * self.label_length
        return executed_train_flops(
            self.config, self.lora, self.remat, self.tokens, labels, self.pairs
        )

    def passes(self) -> int:
        """Passes over the layers: forward, backward, and the recomputed forward."""
        return 3 if self.remat == "full" else 2


@dataclass(frozen=True)
class Seconds:
    """Lower bound of the time that each part of the hardware needs for a step.

    Attributes:
        compute: matrix products.
        hbm: reads and writes of memory.
        interconnect: data received from other chips.
    """

    compute: float
    hbm: float
    interconnect: float

    @property
    def step(self) -> float:
        """Lower bound of the whole step."""
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(vars(self), key=lambda name: vars(self)[name])


def seconds(work: Work, topology: Topology, mesh: Mapping[str, int], traffic: float) -> Seconds:
    """The roofline of a step.

    Args:
        work: the step.
        topology: the chips.
        mesh: chips along data, fsdp and tensor.
        traffic: seconds of the collectives.
    """
    chip = topology.chip
    return Seconds(
        compute=work.executed_flops() / topology.chips / chip.flops,
        hbm=hbm_bytes(work, mesh) / chip.hbm_bandwidth,
        interconnect=traffic,
    )


def mfu_bound(work: Work, topology: Topology, step_seconds: float) -> float:
    """Upper bound of model FLOPs as a share of the chips' peak."""
    return work.flops() / (topology.chips * topology.chip.flops * step_seconds)


def collective_seconds(
    collectives: Sequence[Collective], topology: Topology, coordinates: Sequence[Coordinate]
) -> float:
    """The time of a program's collectives, one after the other.

    Args:
        collectives: the collectives.
        topology: the chips.
        coordinates: the chips' coordinates, in the order of the program's device ids.
    """
    return sum(
        one.total_bytes / topology.bandwidth([coordinates[chip] for chip in one.group])
        for one in collectives
        if one.total_bytes
    )


def hbm_bytes(work: Work, mesh: Mapping[str, int]) -> float:
    """Bytes that a chip reads and writes in a step.

    Gathered weights are written once and read by each product, quantised ones as they are stored:
    the TPU compiler dequantises within the product. Every linear reads its input and
    writes its output. Attention without a fused kernel writes and reads its scores in float32 and
    its weights in bfloat16.
    """
    config, tensor = work.config, mesh["tensor"]
    share = mesh["data"] * mesh["fsdp"]
    tokens, pairs = work.tokens / share, work.pairs / share
    reads = (work.passes() + 2) * work.accumulate
    weights = linear_parameters(config) / tensor * work.weight_bytes * reads
    streams = sum(sum(shape) for shape in linear_shapes(config).values()) / tensor
    activations = tokens * config.num_layers * streams * _BF16 * work.passes()
    heads = config.num_layers * config.num_heads / tensor
    scores = 0.0 if work.flash else pairs * heads * 2 * (_FLOAT + _BF16) * work.passes()
    return weights + activations + scores


def traffic_bytes(work: Work, mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes that a chip receives along each axis of a mesh in a step.

    fsdp all-gathers the weights of every layer forward and backward, and reduce-scatters their
    gradients if they are trained. tensor all-reduces the outputs of attention and of the
    feed-forward network in every pass. data all-reduces the gradients of the trained parameters.
    """
    config, tensor, fsdp = work.config, mesh["tensor"], mesh["fsdp"]
    weights = linear_parameters(config)
    trained = weights if work.lora is None else adapter_parameters(config, work.lora)
    head = 2 * config.vocab_size * config.dim * _BF16
    gathered = (weights / tensor * work.weight_bytes * 2 + head) * work.accumulate
    scattered = weights / tensor * _BF16 * work.accumulate if work.lora is None else 0.0
    residual = work.tokens / mesh["data"] / fsdp * config.dim * _BF16
    sums = 2 * residual * config.num_layers * work.passes()
    return {
        "fsdp": (gathered + scattered) * _others(fsdp),
        "tensor": 2 * sums * _others(tensor),
        "data": 2 * trained / tensor / fsdp * _FLOAT * _others(mesh["data"]),
    }


def temporary_bytes(work: Work, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Memory besides parameters, optimizer and batch: the fixed part, and the part per row.

    The fixed part is the gathered weights of two layers, because the next ones are gathered while
    these are used, and the embedding or the LM head. The part per row is the stored activations of
    each layer, the working set of one layer, and the logits.
    """
    config, tensor = work.config, mesh["tensor"]
    layer = linear_parameters(config) / config.num_layers / tensor
    fixed = 2 * layer * work.weight_bytes + config.vocab_size * config.dim / tensor * _BF16
    shapes = linear_shapes(config)
    outputs = sum(outputs for _, outputs in shapes.values()) / tensor
    inputs = config.dim if work.remat == "full" else config.dim + outputs
    if work.remat == "none":
        inputs += sum(inputs for inputs, _ in shapes.values()) / tensor
    kept = config.num_layers * work.length * inputs * _BF16
    working = work.length * (2 * outputs + 4 * config.dim) * _BF16
    logits = 2 * work.label_length * config.vocab_size / tensor * _FLOAT
    scores = 0.0 if work.flash else 2 * config.num_heads / tensor * work.length**2 * _FLOAT
    return fixed, kept + working + logits + scores


def _others(size: int) -> float:
    """The share of an array that the other chips of a group hold."""
    return (size - 1) / size
