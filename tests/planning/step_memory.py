"""Runs a sharded train step on eight CPU devices; prints the planned and the measured memory.

To be started with XLA_FLAGS that simulate these devices.
"""

import ctypes
import json
import re
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from palr_jax.llm.compute import Compute
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.planning.compile import compile_program
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.step import Batch, TrainState, optimizer, train_step
from palr_jax.trees import PyTree, State, split_off

SHAPE = LlamaConfig(
    vocab_size=4096, dim=512, num_layers=3, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=1408,
    max_length=512,
)  # fmt: skip
ROWS, LENGTH, LABELS = 8, 512, 128


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process, in bytes."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def settled() -> int:
    """VmRSS once it stops falling: XLA's threads free memory with a delay."""
    least, still = resident("VmRSS"), 0
    while still < 10:
        time.sleep(0.1)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        now = resident("VmRSS")
        still = still + 1 if now >= least else 0
        least = min(least, now)
    return least


def main() -> None:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    config = FinetuneConfig(batch_size=ROWS, length=LENGTH, label_length=LABELS, remat="full")

    def sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [axis for axis, size in enumerate(leaf.shape) if axis == leaf.ndim - 2]
        spec = PartitionSpec(*[None] * axes[0], "fsdp") if axes and leaf.size > 10**5 else ()
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    model = nnx.eval_shape(lambda: Llama(SHAPE, nnx.Rngs(params=0), compute=Compute()))
    graph, params, frozen = split_off(model, nnx.Param)
    step_shape: PyTree = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step_shape, params, jax.eval_shape(optimizer(config).init, params))
    state, frozen = jax.tree.map(sharded, (state, frozen))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    row: PyTree = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=rows)
    label: PyTree = jax.ShapeDtypeStruct((ROWS, LABELS), jnp.int32, sharding=rows)
    batch = Batch(row, row, row, label, label, label)
    lowered = train_step.lower(graph, config, state, frozen, batch)
    step = lowered.compile()
    compiled: Any = SimpleNamespace(compile=lambda: step)
    program = compile_program(compiled, 8, (state.params, frozen), state.optimizer, batch)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, frozen, batch))

    @partial(jax.jit, out_shardings=shardings)
    def fill() -> tuple[TrainState, State, Batch]:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), (state, frozen, batch))

    filling = fill.lower().compile()
    # The first run also brings what a process needs once: threads and their scratch.
    jax.block_until_ready(step(*filling()))
    before = settled()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    jax.block_until_ready(step(*filling()))
    # The program itself was in memory before.
    planned = 8 * (program.memory.peak - program.memory.code)
    print(json.dumps({"planned": planned, "measured": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
