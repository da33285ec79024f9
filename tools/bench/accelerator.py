"""What one accelerator gives: tuning and ranking against its roofline, and the memory they take.

    python tools/bench/accelerator.py --config configs/llama-7b/v5e-16.yaml --batches 1 4 16
    python tools/bench/accelerator.py --config quickstart --json accelerator.json

It runs on the first device that JAX finds, a GPU, a TPU or a CPU, and reads no weights and no data:
the model has the config's shape and random parameters. A row of the table is one program, in a
process of its own so that its peak memory is its own:

- tune: a step of LoRA tuning on label tokens (or of full tuning, as the config says), for each
  number of rows, two examples a row;
- tune, XLA attention: the same without the platform's fused attention;
- tune, an example a row: the same rows half empty, as without packing;
- rank: the candidates of as many users in one pass;
- SASRec step: a step of the retriever over 3,416 items, batch_size rows.

`bound` is the least time by the chip's published peaks (`palr_jax/parallel/chips.py`); it is empty
for devices that are not in that table. `planned` is the peak memory by the compiler, which
`palr plan` reports, and `measured` that of the device, where it counts.

Shapes: B rows or users, T tokens of a row, M label tokens, C candidates.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.config import Config, load_config
from palr_jax.config.bundled import config_path
from palr_jax.decoding.score import score_step
from palr_jax.decoding.score_plan import ScorePlan, plan_score
from palr_jax.decoding.trie import build
from palr_jax.errors import UserError
from palr_jax.llm.attention import XLA
from palr_jax.llm.axes import shardings
from palr_jax.llm.checkpoints.weights import quantize_linears
from palr_jax.llm.compute import compute_over
from palr_jax.llm.flops import causal_pairs, rank_flops
from palr_jax.llm.llama import Llama
from palr_jax.llm.quantize import bytes_per_weight
from palr_jax.parallel.chips import Chip, Topology, chip_of
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.planning.compile import bytes_per_chip, compile_program
from palr_jax.planning.plan import shape_of
from palr_jax.planning.roofline import Work, seconds
from palr_jax.ragged import Ragged
from palr_jax.ranking.batches import prompt_width
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.models import MODELS
from palr_jax.retrieval.rows import NEXT_ITEM
from palr_jax.retrieval.step import Rates, RetrieverState, retriever_step
from palr_jax.training.step import Batch, initial_state, train_step
from palr_jax.training.trained import trainable
from palr_jax.trees import PyTree, State, split_off

ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}
SASREC_ITEMS, SASREC_LENGTH = 3_416, 200
TITLE_TOKENS = 12

Step = Callable[[], PyTree]


@dataclass(frozen=True)
class Measured:
    """One program on the device.

    Attributes:
        row: its name.
        size: rows or users of a batch.
        unit: what `per_second` counts.
        milliseconds: median duration of a step; None if it did not fit.
        per_second: units per second.
        bound_ms: least duration by the chip's peaks; None for an unknown chip.
        planned_gib: peak memory by the compiler.
        measured_gib: peak memory by the device; None if it does not count.
        failure: why there are no figures.
    """

    row: str
    size: int
    unit: str
    milliseconds: float | None = None
    per_second: float | None = None
    bound_ms: float | None = None
    planned_gib: float | None = None
    measured_gib: float | None = None
    failure: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart", help="a file, or a bundled config")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value, over the config")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        overrides = dict(one.split("=", 1) for one in arguments.set)
        config = load_config(config_path(arguments.config), overrides)
        shape_of(config)
    except UserError as error:
        raise SystemExit(str(error)) from None
    if arguments.row:
        name, size = arguments.row
        measured = measure(config, name, int(size), arguments.repeats)
        print(json.dumps(dataclasses.asdict(measured)))
        return
    rows = [in_own_process(name, size) for name, size in wanted(arguments.batches)]
    print_table(rows)
    if arguments.json:
        device = jax.devices()[0]
        about = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
        found = {**about, "config": arguments.config, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def wanted(batches: list[int]) -> list[tuple[str, int]]:
    """The rows of the table: name and batch size."""
    largest = max(batches)
    return [
        *[("tune", size) for size in batches],
        ("tune, XLA attention", largest),
        ("tune, an example a row", largest),
        *[("rank", size) for size in batches],
        ("SASRec step", 64),
    ]


def in_own_process(name: str, size: int) -> dict[str, Any]:
    """Measures a row in a fresh process, which frees the device afterwards."""
    command = [sys.executable, *sys.argv, "--row", name, str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    is_full = any("RESOURCE_EXHAUSTED" in line for line in lines)
    failure = "out of memory" if is_full else (lines or ["no message"])[-1]
    return dataclasses.asdict(Measured(name, size, "", failure=failure))


def measure(config: Config, name: str, size: int, repeats: int) -> Measured:
    """Compiles and times one row of the table on the first device."""
    chip = chip_of(jax.devices()[0].device_kind)
    match name:
        case "tune" | "tune, XLA attention" | "tune, an example a row":
            return tune(config, name, size, repeats, chip)
        case "rank":
            return rank(config, size, repeats, chip)
        case "SASRec step":
            return sasrec(size, repeats)
    raise ValueError(f"no row is called {name}")


def tune(config: Config, name: str, rows: int, repeats: int, chip: Chip | None) -> Measured:
    """A step of tuning on `rows` rows."""
    tuning = replace(config.finetune, batch_size=rows, accumulate=1, objective="tokens")
    shards = Shards(make_mesh(MeshConfig(), jax.devices()[:1]))
    model = drawn(config, shards)
    if name == "tune, XLA attention":
        model.compute = replace(compute_over(shards), attention=XLA)
    graph, params, frozen = split_off(model, trainable(model))
    del model
    examples = 1 if name == "tune, an example a row" else 2
    batch = random_batch(rows, tuning.length, tuning.label_length, examples)
    state = [initial_state(params, tuning, shards)]
    program = compile_program(
        train_step.lower(graph, tuning, state[0], frozen, batch),
        1, (state[0].params, frozen), state[0].optimizer, batch,
    )  # fmt: skip

    def step() -> PyTree:
        state[0], metrics = train_step(graph, tuning, state[0], frozen, batch)
        return metrics

    took = median_seconds(step, repeats)
    shape, lora = shape_of(config), config.ranker.lora
    work = Work(
        shape, lora, tuning.remat, rows, tuning.length, tuning.label_length,
        flash=name != "tune, XLA attention",
        weight_bytes=bytes_per_weight(config.ranker.quantize),
    )  # fmt: skip
    bound = None
    if chip is not None:
        bound = 1e3 * seconds(work, Topology("one", chip, 1, (1,)), ONE_DEVICE, 0.0).step
    return Measured(
        name, rows, "examples", 1e3 * took, rows * examples / took, bound,
        program.memory.peak / 2**30, peak_gib(),
    )  # fmt: skip


def rank(config: Config, users: int, repeats: int, chip: Chip | None) -> Measured:
    """One ranking pass for `users` users."""
    shards = Shards(make_mesh(MeshConfig(), jax.devices()[:1]))
    model = drawn(config, shards)
    shape = model.config
    rng, length = np.random.default_rng(0), prompt_width(config.instruct.length)
    tokens_BT = jnp.asarray(rng.integers(3, shape.vocab_size, (users, length)), jnp.int32)
    length_B = jnp.full((users,), length, jnp.int32)
    plan = random_plan(users, config.retriever.candidates, shape.vocab_size, rng)
    graph, weights = nnx.split(model)
    del model
    program = compile_program(
        score_step.lower(graph, weights, tokens_BT, length_B, plan),
        1, weights, (), (tokens_BT, length_B, plan),
    )  # fmt: skip
    took = median_seconds(lambda: score_step(graph, weights, tokens_BT, length_B, plan), repeats)
    bound = None
    if chip is not None:
        fed, edges = plan.token_BM.shape[1], plan.edge_token_BE.shape[1]
        flops = rank_flops(
            shape, config.ranker.lora, users * (length + fed), users * edges,
            users * causal_pairs([length + fed]),
        )  # fmt: skip
        bound = 1e3 * max(flops / chip.flops, bytes_per_chip(weights) / chip.hbm_bandwidth)
    return Measured(
        "rank", users, "users", 1e3 * took, users / took, bound,
        program.memory.peak / 2**30, peak_gib(),
    )  # fmt: skip


def sasrec(rows: int, repeats: int) -> Measured:
    """A step of SASRec with the settings of configs/ml-1m.yaml on random histories."""
    config = RetrieverConfig(
        dim=64, num_blocks=2, length=SASREC_LENGTH, dropout=0.2, batch_size=rows
    )
    retriever: Any = MODELS["sasrec"](config, SASREC_ITEMS, 0)
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows(
        rng.integers(0, SASREC_ITEMS, (rows + 1, SASREC_LENGTH)).astype(np.int32)
    )
    made = NEXT_ITEM.training(histories, SASREC_ITEMS, SASREC_LENGTH, rows, 0, 0)
    batch = jax.tree.map(lambda array: jnp.asarray(array[:rows]), made)
    state, key = [RetrieverState.initial(retriever._params)], jax.random.key(0)

    def step() -> PyTree:
        state[0], loss = retriever_step(
            retriever._graph, Loss("cross_entropy", 1), Rates(1e-3, 0.1, 0.99), state[0], batch, key
        )
        return loss

    took = median_seconds(step, repeats)
    return Measured(
        "SASRec step", rows, "items", 1e3 * took, rows * SASREC_LENGTH / took,
        measured_gib=peak_gib(),
    )  # fmt: skip


def drawn(config: Config, shards: Shards) -> Llama:
    """A random model of the config's shape; weights under adapters are stored as it says."""
    shape, lora, compute = shape_of(config), config.ranker.lora, compute_over(shards)

    dtype = jnp.dtype(config.ranker.dtype)

    def made() -> Llama:
        model = Llama(shape, nnx.Rngs(params=0), lora, compute)
        quantize_linears(model, config.ranker.quantize, dtype)
        return model

    def stored(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def split(model: Llama) -> tuple[nnx.GraphDef[Llama], State, State]:
        return split_off(model, trainable(model))

    def fresh() -> tuple[State, State]:
        # Cast where they are drawn, so that the device never holds the model in float32.
        _, trained, frozen = split(made())
        return trained, jax.tree.map(stored, frozen)

    graph, *parts = split(nnx.eval_shape(made))
    placed = tuple(shardings(shards, part) for part in parts)
    return nnx.merge(graph, *jax.jit(fresh, out_shardings=placed)())


def random_batch(rows: int, length: int, labels: int, examples: int) -> Batch:
    """Rows of one or two examples, each of half a row; the label tokens end the examples."""
    rng, half = np.random.default_rng(0), length // 2
    column_T = np.arange(length)
    segment_T = np.minimum(column_T // half, 1) + 1
    if examples == 1:
        segment_T = np.where(column_T < half, 1, 0)
    mine = labels // 2 * examples
    ends = [number * half + half - 1 - np.arange(labels // 2) for number in range(examples)]
    index_M = np.zeros(labels, np.int32)
    index_M[:mine] = np.concatenate(ends) % length

    def tiled(row: np.ndarray) -> jax.Array:
        return jnp.asarray(np.tile(row, (rows, 1)), jnp.int32)

    return Batch(
        tokens_BT=jnp.asarray(rng.integers(3, 200, (rows, length)), jnp.int32),
        position_BT=tiled(column_T % half),
        segment_BT=tiled(segment_T),
        target_BM=jnp.asarray(rng.integers(3, 200, (rows, labels)), jnp.int32),
        target_index_BM=tiled(index_M),
        weight_BM=tiled((np.arange(labels) < mine).astype(np.int32)),
    )


def random_plan(
    users: int, candidates: int, vocab_size: int, rng: np.random.Generator
) -> ScorePlan:
    """The plan of candidates whose titles are random tokens with common beginnings."""
    first = rng.integers(3, 3 + candidates // 2, (candidates, 1))
    rest = rng.integers(3, vocab_size, (candidates, TITLE_TOKENS - 1))
    items = Ragged.from_rows(np.concatenate([first, rest], axis=1).astype(np.int32))
    plan = plan_score(build(items, np.tile(np.arange(candidates), (users, 1))))
    found: ScorePlan = jax.tree.map(jnp.asarray, plan)
    return found


def median_seconds(step: Step, repeats: int) -> float:
    """The median duration of a step, after one that compiles."""
    jax.block_until_ready(step())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(step())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def peak_gib() -> float | None:
    """The most memory that the device has held in this process; None if it does not count."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats["peak_bytes_in_use"] / 2**30


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as Markdown."""
    print("| row | batch | ms a step | a second | bound, ms | share | planned GiB | measured GiB |")
    print("|---|---|---|---|---|---|---|---|")

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows:
        if row["failure"]:
            print(f"| {row['row']} | {row['size']} | {row['failure']} | | | | | |")
            continue
        took, bound = row["milliseconds"], row["bound_ms"]
        share = None if bound is None else bound / took
        print(
            f"| {row['row']} | {row['size']} | {took:.4g} | {row['per_second']:,.4g} {row['unit']} "
            f"| {cell(bound, '.4g')} | {cell(share, '.0%')} | {cell(row['planned_gib'], '.2f')} "
            f"| {cell(row['measured_gib'], '.2f')} |"
        )


if __name__ == "__main__":
    main()
