"""The formulas against the matrix products in JAX's programs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat
from palr_jax.llm.flops import (
    adapter_parameters,
    causal_pairs,
    executed_train_flops,
    linear_parameters,
    rank_flops,
    train_flops,
)
from palr_jax.llm.llama import Llama
from palr_jax.training.step import Batch, label_loss
from palr_jax.trees import State, split_off

SHAPE = LlamaConfig(
    vocab_size=40, dim=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=20,
    max_length=64, tie_embeddings=False,
)  # fmt: skip
LORA = LoRAConfig(rank=2, targets=("q", "v", "down"))
ROWS, LENGTH, LABELS = 2, 9, 4
# Attention here multiplies every query with every key and masks afterwards.
PAIRS = ROWS * LENGTH**2


def products(program: Any) -> int:
    """FLOPs of the matrix products of a jaxpr; a scan runs its body `length` times."""
    total = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


def counted(lora: LoRAConfig | None, remat: Remat) -> int:
    model = nnx.eval_shape(lambda: Llama(SHAPE, nnx.Rngs(params=0), lora))
    graph, params, frozen = split_off(model, nnx.LoRAParam if lora else nnx.Param)
    row, label = jnp.ones((ROWS, LENGTH), jnp.int32), jnp.ones((ROWS, LABELS), jnp.int32)
    batch = Batch(row, row, row, label, label, label)

    def loss(params: State, frozen: State) -> jax.Array:
        return label_loss(nnx.merge(graph, params, frozen), batch, None, remat)[0]

    # Unused results are removed first, as XLA would do.
    program = jax.make_jaxpr(jax.grad(loss))(params, frozen).jaxpr
    from jax._src.interpreters.partial_eval import dce_jaxpr  # noqa: PLC0415

    return products(dce_jaxpr(program, [True] * len(program.outvars))[0])


def by_formula(lora: LoRAConfig | None, remat: Remat) -> float:
    tokens, labels = ROWS * LENGTH, ROWS * LABELS
    return executed_train_flops(SHAPE, lora, remat, tokens, labels, PAIRS)


def test_full_training_takes_the_products_of_the_formula() -> None:
    assert counted(None, "none") == by_formula(None, "none")


def test_training_of_adapters_takes_the_products_of_the_formula() -> None:
    assert counted(LORA, "none") == by_formula(LORA, "none")


@pytest.mark.parametrize("lora", [None, LORA])
def test_full_remat_runs_the_layers_forward_once_more(lora: LoRAConfig | None) -> None:
    # The last product of a layer feeds the residual alone, which the backward pass does not need.
    unneeded = 2 * ROWS * LENGTH * SHAPE.num_layers * SHAPE.ffn_dim * SHAPE.dim
    if lora:
        unneeded += 2 * ROWS * LENGTH * SHAPE.num_layers * lora.rank * SHAPE.dim
    assert counted(lora, "full") == by_formula(lora, "full") - unneeded


def test_parameters_are_those_of_the_model() -> None:
    model = nnx.eval_shape(lambda: Llama(SHAPE, nnx.Rngs(params=0), LORA))
    state = nnx.to_flat_state(nnx.state(model))
    kernels = sum(leaf.size for path, leaf in state if path[-1] == "kernel_IO")
    adapters = sum(leaf.size for path, leaf in state if str(path[-1]).startswith("lora"))
    assert linear_parameters(SHAPE) == kernels
    assert adapter_parameters(SHAPE, LORA) == adapters


def test_llama_7b_takes_four_or_six_operations_a_parameter_and_token() -> None:
    config = LlamaConfig(32_000, 4096, 32, 32, 32, 128, 11_008, 2048, tie_embeddings=False)
    assert linear_parameters(config) == 6_476_005_376
    assert train_flops(config, None, 1, 0, 0) == 6 * 6_476_005_376
    adapters = 6 * adapter_parameters(config, LoRAConfig(rank=16))
    assert train_flops(config, LoRAConfig(rank=16), 1, 0, 0) == 4 * 6_476_005_376 + adapters
    # The LM head costs per label, attention per visible pair.
    assert train_flops(config, None, 1, 1, 0) - train_flops(config, None, 1, 0, 0) == (
        6 * 32_000 * 4096
    )
    assert train_flops(config, None, 0, 0, 1) == 12 * 4096 * 32


def test_ranking_is_one_forward_pass() -> None:
    tokens, edges = 7, 3
    forward = 2 * (linear_parameters(SHAPE) + adapter_parameters(SHAPE, LORA))
    pairs = causal_pairs([tokens])
    assert pairs == sum(range(1, 8))
    attention = 4 * pairs * SHAPE.num_layers * SHAPE.num_heads * SHAPE.head_dim
    expected = tokens * forward + edges * 2 * SHAPE.dim + attention
    assert rank_flops(SHAPE, LORA, tokens, edges, pairs) == expected
