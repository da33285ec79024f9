from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from palr_jax.llm.checkpoints.weights import base_parameters, build
from palr_jax.llm.config import TARGETS, LlamaConfig, LoRAConfig, Target
from palr_jax.llm.llama import Llama
from palr_jax.llm.lora import Linear
from palr_jax.trees import State, split_off
from tests.programs import compiled, forward

TINY = LlamaConfig(
    vocab_size=31, dim=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=20,
    max_length=64,
)  # fmt: skip
TOKENS = jnp.array(np.random.default_rng(0).integers(0, 31, (2, 9)))
ALL = LoRAConfig(rank=3, alpha=12.0)


def pair(lora: LoRAConfig, dtype: DTypeLike = jnp.float32) -> tuple[Llama, Llama]:
    """A model, and the same with new adapters."""
    rng = np.random.default_rng(1)
    arrays = {
        path: jnp.asarray(rng.normal(size=shape) * shape[-1] ** -0.5, dtype)
        for path, shape in base_parameters(TINY).items()
    }
    return build(TINY, arrays), build(TINY, arrays, lora, seed=5)


def disturb(model: Llama) -> None:
    """Adapters as after some training: B is not zero."""
    for number, target in enumerate(TARGETS):
        linear = getattr(model.layers, target)
        if linear.scale:
            drawn = jax.random.normal(jax.random.key(number), linear.lora_b_RO.shape)
            linear.lora_b_RO[...] = 0.1 * drawn


def merged(model: Llama) -> Llama:
    arrays = {
        tuple(map(str, path)): leaf[...]
        for path, leaf in nnx.to_flat_state(nnx.state(build_base(model)))
    }
    for target in TARGETS:
        linear = getattr(model.layers, target)
        layers = [linear.merged_kernel(layer) for layer in range(TINY.num_layers)]
        arrays["layers", target, "kernel_IO"] = jnp.stack(layers)
    return build(TINY, arrays)


def build_base(model: Llama) -> Llama:
    everything = dict(nnx.to_flat_state(nnx.state(model)))
    return build(TINY, {path: everything[path][...] for path in base_parameters(TINY)})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fresh_adapter_changes_not_one_bit(dtype: DTypeLike) -> None:
    base, adapted = pair(ALL, dtype)
    np.testing.assert_array_equal(forward(adapted, TOKENS), forward(base, TOKENS))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam))}
    assert kinds == {jnp.dtype(jnp.float32)}
    assert adapted.layers.q.kernel_IO.dtype == dtype


@pytest.mark.parametrize(("targets", "count"), [(("v",), 2), (("q", "down"), 4), (TARGETS, 14)])
def test_adapters_stand_where_they_are_named_and_come_from_the_seed(
    targets: tuple[Target, ...], count: int
) -> None:
    lora = LoRAConfig(rank=2, targets=targets)
    base, adapted = pair(lora)
    adapters = nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))
    assert {path[1] for path, _ in adapters} == set(targets)
    assert len(adapters) == count
    arrays = {tuple(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(base))}
    for seed, same in ((5, True), (6, False)):
        other = build(TINY, arrays, lora, seed=seed).layers.v if "v" in targets else None
        if other is not None:
            drawn = adapted.layers.v.lora_a_IR[...]
            assert np.array_equal(drawn, other.lora_a_IR[...]) == same
    spread = np.std(adapters[0][1][...])
    assert 0.1 < spread * TINY.dim**0.5 < 2


def test_merged_equals_unmerged() -> None:
    base, adapted = pair(ALL)
    disturb(adapted)
    logits = forward(adapted, TOKENS)
    assert np.abs(logits - forward(base, TOKENS)).max() > 0.01
    np.testing.assert_allclose(forward(merged(adapted), TOKENS), logits, atol=1e-5)


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    lora = LoRAConfig(rank=2, alpha=6.0)
    linear = Linear("k", 5, 4, lora, nnx.Rngs(params=0))
    linear.lora_b_RO[...] = jnp.ones((2, 4))
    x = jnp.arange(10.0).reshape(2, 5)
    a, w = np.asarray(linear.lora_a_IR[...]), np.asarray(linear.kernel_IO[...])
    np.testing.assert_allclose(linear(x), x @ w + 3.0 * x @ a @ np.ones((2, 4)), rtol=1e-5)


def test_gradients_equal_finite_differences() -> None:
    _, adapted = pair(ALL)
    disturb(adapted)
    graph, adapters, base = split_off(adapted, nnx.LoRAParam)

    @jax.jit
    def loss(adapters: State) -> jax.Array:
        logits = nnx.merge(graph, adapters, base)(TOKENS)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], -1)
        return -picked.mean()

    gradient = jax.jit(jax.grad(loss))(adapters)
    key = jax.random.key(9)
    for path, leaf in nnx.to_flat_state(gradient):
        key, draw = jax.random.split(key)
        direction = jax.random.normal(draw, leaf.shape)
        direction /= jnp.linalg.norm(direction)

        def moved(
            step: float, path: tuple[Any, ...] = path, direction: jax.Array = direction
        ) -> float:
            state = dict(nnx.to_flat_state(adapters))
            state[path] = state[path].replace(state[path][...] + step * direction)
            return float(loss(nnx.from_flat_state(list(state.items()))))

        measured = (moved(0.02) - moved(-0.02)) / 0.04
        assert measured == pytest.approx(float((leaf[...] * direction).sum()), abs=3e-4), path
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_dropout_acts_on_adapters_alone_and_only_with_a_key() -> None:
    lora = replace(ALL, dropout=0.4)
    base, adapted = pair(lora)

    def hidden(model: Llama, key: jax.Array | None = None) -> jax.Array:
        return compiled(Llama.hidden, model, TOKENS, None, key)

    key = jax.random.key(0)
    np.testing.assert_array_equal(hidden(adapted, key), hidden(base))
    disturb(adapted)
    plain = hidden(adapted)
    np.testing.assert_array_equal(plain, hidden(adapted))
    dropped = hidden(adapted, key)
    np.testing.assert_array_equal(dropped, hidden(adapted, key))
    assert np.abs(dropped - plain).max() > 1e-3
    assert np.abs(dropped - hidden(adapted, jax.random.key(1))).max() > 1e-3
