from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat
from palr_jax.llm.flops import causal_pairs
from palr_jax.llm.llama import Llama
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.step import Batch, TrainState, label_loss, optimizer, train_step
from palr_jax.training.trained import trainable
from palr_jax.trees import PyTree, State, split_off
from tests.programs import compiled, forward

TINY = LlamaConfig(
    vocab_size=50, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=24,
    max_length=64,
)  # fmt: skip


def packed(examples: list[list[tuple[list[int], list[int]]]], length: int, width: int) -> Batch:
    """Rows of (prompt, label) pairs, packed by hand."""
    rows = []
    for row in examples:
        tokens: list[int] = []
        position: list[int] = []
        segment: list[int] = []
        target: list[int] = []
        index: list[int] = []
        for number, (prompt, label) in enumerate(row, 1):
            index += range(len(tokens) + len(prompt) - 1, len(tokens) + len(prompt + label) - 1)
            target += label
            read = prompt + label[:-1]
            tokens += read
            position += range(len(read))
            segment += [number] * len(read)
        pad, label_pad = length - len(tokens), width - len(target)
        rows.append([
            np.pad(tokens, (0, pad)), np.pad(position, (0, pad)), np.pad(segment, (0, pad)),
            np.pad(target, (0, label_pad)), np.pad(index, (0, label_pad)),
            np.pad(np.ones(len(target), int), (0, label_pad)),
        ])  # fmt: skip
    return Batch(*(jnp.array(np.stack(field), jnp.int32) for field in zip(*rows, strict=True)))


A, B, C = ([5, 6, 7], [8, 9, 2]), ([11, 12, 13, 14, 15], [16, 2]), ([20, 21], [22, 23, 24, 2])


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama(TINY, nnx.Rngs(params=1))


def test_loss_is_the_mean_over_label_tokens_whatever_the_packing(model: Llama) -> None:
    total, count = 0.0, 0
    for prompt, label in (A, B, C):
        logp = jax.nn.log_softmax(forward(model, jnp.array([prompt + label[:-1]]))[0])
        for offset, token in enumerate(label):
            total -= float(logp[len(prompt) - 1 + offset, token])
            count += 1
    one_row = packed([[A, B, C]], 30, 12)
    three_rows = packed([[C], [A], [B]], 9, 5)
    for batch in (one_row, three_rows):
        loss, metrics = compiled(label_loss, model, batch)
        assert float(loss) == pytest.approx(total / count, abs=1e-5)
        lengths = [len(p) + len(t) - 1 for p, t in (A, B, C)]
        assert int(metrics["tokens"]) == sum(lengths)
        assert int(metrics["label tokens"]) == count
        assert int(metrics["pairs"]) == causal_pairs(lengths)


def test_gradients_equal_finite_differences(model: Llama) -> None:
    batch = packed([[A, B]], 16, 8)
    graph, params = nnx.split(model)

    @jax.jit
    def loss(params: State) -> jax.Array:
        return label_loss(nnx.merge(graph, params), batch)[0]

    values = jax.device_get(params)
    direction = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=leaf.shape), values)
    grads = jax.device_get(jax.jit(jax.grad(loss))(params))
    products = jax.tree.map(lambda g, d: float((g * d).sum()), grads, direction)
    slope = sum(jax.tree.leaves(products))
    step = 1e-3

    def moved(sign: int) -> float:
        there = jax.tree.map(lambda p, d: np.float32(p + sign * step * d), values, direction)
        return float(loss(there))

    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(slope, rel=2e-2)


def test_lora_trains_adapters_alone_and_starts_at_the_base(model: Llama) -> None:
    lora = LoRAConfig(rank=2, alpha=8.0, targets=("q", "down"))
    adapted = Llama(TINY, nnx.Rngs(params=1), lora)
    graph, adapters, base = split_off(adapted, nnx.LoRAParam)
    assert trainable(adapted) is nnx.LoRAParam
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(adapters)}
    assert shapes == {
        ("layers", "q", "lora_a_IR"): (2, 16, 2), ("layers", "q", "lora_b_RO"): (2, 2, 16),
        ("layers", "down", "lora_a_IR"): (2, 24, 2), ("layers", "down", "lora_b_RO"): (2, 2, 16),
    }  # fmt: skip
    # On the same base, an untrained adapter leaves the result bitwise unchanged.
    plain = nnx.merge(nnx.graphdef(model), base)
    tokens = jnp.array([[3, 4, 5, 6]])
    np.testing.assert_array_equal(forward(plain, tokens), forward(adapted, tokens))

    config = FinetuneConfig(learning_rate=0.1, warmup_steps=0)
    state = TrainState(jnp.int32(0), adapters, optimizer(config).init(adapters))
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sorted(moments) == sorted(2 * list(shapes.values()))
    batch = packed([[A, B, C]], 30, 12)
    losses = []
    for _ in range(30):
        state, metrics = train_step(graph, config, state, base, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_merged_adapters_equal_the_formula() -> None:
    lora = LoRAConfig(rank=3, alpha=6.0, targets=("up",))
    adapted = Llama(TINY, nnx.Rngs(params=1), lora)
    key = jax.random.key(0)
    adapted.layers.up.lora_b_RO[...] = jax.random.normal(key, (2, 3, 24))
    tokens = jnp.array([[3, 4, 5, 6]])
    logits = forward(adapted, tokens)
    a, b = adapted.layers.up.lora_a_IR[...], adapted.layers.up.lora_b_RO[...]
    _, _, base = split_off(adapted, nnx.LoRAParam)
    merged = nnx.merge(nnx.graphdef(Llama(TINY, nnx.Rngs(params=1))), base)
    merged.layers.up.kernel_IO[...] += 2.0 * jnp.einsum("LIR,LRO->LIO", a, b)
    np.testing.assert_allclose(forward(merged, tokens), logits, atol=1e-4)
    assert np.abs(logits - forward(Llama(TINY, nnx.Rngs(params=1)), tokens)).max() > 0.1


def test_adapters_are_dropped_out_anew_each_step_and_alike_on_repetition() -> None:
    lora = LoRAConfig(rank=2, dropout=0.5)
    model = Llama(TINY, nnx.Rngs(params=1), lora)
    for target in lora.targets:
        getattr(model.layers, target).lora_b_RO[...] += 0.3
    config = FinetuneConfig(steps=9, warmup_steps=0)
    batch = packed([[A, B, C]], 30, 12)

    def loss_at(step: int, seed: int = 0) -> float:
        graph, params, frozen = split_off(model, nnx.LoRAParam)
        params = jax.tree.map(jnp.copy, params)  # the step donates its state
        state = TrainState(jnp.int32(step), params, optimizer(config).init(params))
        return float(train_step(graph, config, state, frozen, batch, seed)[1]["loss"])

    assert loss_at(3) == loss_at(3)
    assert loss_at(3) != loss_at(4)
    assert loss_at(3, seed=7) == loss_at(3, seed=7) != loss_at(3)
    assert float(compiled(label_loss, model, batch)[0]) not in (loss_at(3), loss_at(4))


def one_step(
    model: Llama, batch: Batch, **settings: Any
) -> tuple[list[np.ndarray], dict[str, jax.Array]]:
    config = FinetuneConfig(steps=5, warmup_steps=0, learning_rate=0.1, **settings)
    graph, params, frozen = split_off(model, trainable(model))
    state = TrainState(jnp.int32(0), params, optimizer(config).init(params))
    state = jax.tree.map(jnp.copy, state)  # the step takes over its memory
    state, metrics = train_step(graph, config, state, frozen, batch)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)], metrics


def test_a_batch_in_parts_gives_the_step_of_the_batch(model: Llama) -> None:
    # The rows differ in label tokens, so that a mean of means would differ.
    batch = packed([[A, B], [C], [B], [A, B, C]], 30, 12)
    expected, whole = one_step(model, batch, batch_size=4)
    for accumulate in (2, 4):
        found, metrics = one_step(model, batch, batch_size=4, accumulate=accumulate)
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)
        for name, value in whole.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_changes_nothing_but_memory(model: Llama, remat: Remat) -> None:
    batch = packed([[A, B], [C]], 16, 8)
    expected, _ = one_step(model, batch, batch_size=2)
    found, _ = one_step(model, batch, batch_size=2, remat=remat)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)
    graph, params = nnx.split(model)

    def kept(choice: Remat) -> int:
        """Bytes that the forward pass stores for the backward pass."""

        def loss(params: State) -> jax.Array:
            return label_loss(nnx.merge(graph, params), batch, None, choice)[0]

        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    assert kept("full") < kept("dots") < kept("none")


def test_parts_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match=r"accumulate \(3\) must divide batch_size \(8\)"):
        FinetuneConfig(batch_size=8, accumulate=3)


def test_the_rate_warms_up_and_falls_along_a_cosine_to_a_tenth() -> None:
    config = FinetuneConfig(steps=100, warmup_steps=10, learning_rate=0.2)
    rule = optimizer(config)
    params = {"x": jnp.zeros(1)}
    state, update, rates = rule.init(params), jax.jit(rule.update), []
    for _ in range(101):
        updates: PyTree
        updates, state = update({"x": jnp.full(1, 0.5)}, state, params)
        rates.append(-float(updates["x"][0]))  # AdamW moves by the rate when the slope stays
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.1, rel=1e-3)
    assert rates[10] == pytest.approx(0.2, rel=1e-3)
    assert rates[55] == pytest.approx(0.02 + 0.18 / 2, rel=1e-3)
    assert rates[100] == pytest.approx(0.02, rel=1e-3)


def test_large_gradients_are_clipped_to_the_norm() -> None:
    rule = optimizer(FinetuneConfig(clip_norm=1.0))
    params = {"x": jnp.zeros(2)}

    def moments(gradient: list[float]) -> np.ndarray:
        _, state = rule.update({"x": jnp.array(gradient)}, rule.init(params), params)
        return np.concatenate([x for x in jax.tree.leaves(state) if x.ndim])

    np.testing.assert_allclose(moments([30.0, 40.0]), moments([0.6, 0.8]), rtol=1e-6)
    assert np.abs(moments([0.3, 0.4]) - moments([0.6, 0.8])).max() > 0.01


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_frozen_bfloat16_gives_nearly_the_step_of_float32(remat: Remat) -> None:
    model = Llama(TINY, nnx.Rngs(params=1), LoRAConfig(rank=2))
    for target in ("q", "down"):
        getattr(model.layers, target).lora_b_RO[...] += 0.1
    graph, params, frozen = split_off(model, nnx.LoRAParam)
    batch = packed([[A, B], [C]], 16, 8)

    def gradients(frozen: State, remat: Remat) -> np.ndarray:
        def loss(params: State) -> jax.Array:
            return label_loss(nnx.merge(graph, params, frozen), batch, None, remat)[0]

        leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
        return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])

    expected = gradients(frozen, "none")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), frozen)
    error = np.linalg.norm(gradients(half, remat) - expected) / np.linalg.norm(expected)
    assert error < 0.03


def test_the_step_is_lowered_for_cuda() -> None:
    """Without cuDNN attention, which cannot even be lowered if cuDNN is not installed."""
    model = Llama(TINY, nnx.Rngs(params=1), LoRAConfig(rank=2, dropout=0.1))
    config = FinetuneConfig(steps=5, batch_size=2, accumulate=2, remat="dots")
    graph, params, frozen = split_off(model, nnx.LoRAParam)
    state = TrainState(jnp.int32(0), params, optimizer(config).init(params))
    exported = jax.export.export(train_step, platforms=["cuda"])(
        graph, config, state, frozen, packed([[A, B], [C]], 16, 8)
    )
    assert exported.platforms == ("cuda",)
    assert "dot_general" in exported.mlir_module()
