"""Quantised weights against a reference in NumPy, and models of them against dequantised ones."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.typing import DTypeLike
from scipy.stats import norm

from palr_jax.config import parse_config
from palr_jax.errors import UserError
from palr_jax.llm import load
from palr_jax.llm.axes import ParamPath, check_divides, placement
from palr_jax.llm.checkpoints.loading import quantization_error
from palr_jax.llm.checkpoints.weights import Placement, base_parameters, build, collect, one_device
from palr_jax.llm.config import TARGETS, LlamaConfig, LoRAConfig, Quantization, Remat
from palr_jax.llm.llama import Llama
from palr_jax.llm.quantize import dequantize, group_size, quantize, quantized_product
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.planning.hlo import collectives
from palr_jax.trees import PyTree, State, split_off
from tests.llm.variants import VARIANTS, tensors, write_checkpoint
from tests.locations import SHARED
from tests.programs import forward

KINDS: tuple[Quantization, ...] = ("int8", "nf4")
STORIES = SHARED / "models" / "stories260K"
SHAPE = LlamaConfig(
    vocab_size=64, dim=128, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=16, ffn_dim=256,
    max_length=64,
)  # fmt: skip
LORA = LoRAConfig(rank=3, alpha=6.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 12)))
ONE = Shards(make_mesh(MeshConfig()))


def normal_float() -> np.ndarray:
    """The levels of NF4 from quantiles of the normal distribution, as bitsandbytes computes them.

    See Dettmers et al. 2023, section 3: eight levels from the positive half, seven from the
    negative half, and 0; the outermost quantile is the mean of those of 30 and of 32 steps.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    positive = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, [0], negative]))
    return levels / levels.max()


def reference(kernel_IO: np.ndarray, kind: Quantization) -> tuple[np.ndarray, np.ndarray]:
    """The integers [I, O], and the weights they stand for."""
    size = group_size(len(kernel_IO))
    groups_GSO = kernel_IO.astype(np.float64).reshape(-1, size, kernel_IO.shape[1])
    largest_G1O = np.abs(groups_GSO).max(axis=1, keepdims=True)
    if kind == "int8":
        scale_G1O = largest_G1O / 127.5
        number_GSO = np.clip(np.round(groups_GSO / scale_G1O), -128, 127)
        value_GSO = number_GSO * scale_G1O
    else:
        levels = normal_float()
        number_GSO = np.abs((groups_GSO / largest_G1O)[..., None] - levels).argmin(axis=-1)
        value_GSO = levels[number_GSO] * largest_G1O
    return number_GSO.reshape(kernel_IO.shape), value_GSO.reshape(kernel_IO.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [256, 172, 7])
def test_integers_and_weights_are_those_of_the_reference(kind: Quantization, inputs: int) -> None:
    kernel_LIO = np.random.default_rng(inputs).normal(size=(2, inputs, 5)).astype(np.float32)
    numbers_LIO, scale_LGO = quantize(jnp.asarray(kernel_LIO), kind, jnp.float32)
    assert numbers_LIO.dtype == {"int8": jnp.int8, "nf4": jnp.uint4}[kind]
    assert scale_LGO.shape == (2, inputs // group_size(inputs), 5)
    found_LIO = jax.vmap(dequantize)(numbers_LIO, scale_LGO)
    for layer in range(2):
        number_IO, value_IO = reference(kernel_LIO[layer], kind)
        # A largest weight lies half way between 127 and 128, so that rounding decides.
        sure_IO = np.abs(number_IO) < 127
        assert sure_IO.mean() > 0.8 if inputs > 7 else sure_IO.any()
        difference_IO = np.asarray(numbers_LIO[layer], int) - number_IO
        assert (difference_IO[sure_IO] == 0).all()
        assert np.abs(difference_IO).max() <= 1
        np.testing.assert_allclose(
            np.asarray(found_LIO[layer])[sure_IO], value_IO[sure_IO], rtol=2e-6, atol=1e-7
        )


@pytest.mark.parametrize(("kind", "step"), [("int8", 1 / 255), ("nf4", (1 - 0.6962) / 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_error_is_at_most_half_a_step_of_its_group(
    kind: Quantization, step: float, dtype: DTypeLike
) -> None:
    kernel_IO = np.random.default_rng(3).standard_cauchy((192, 6)).astype(np.float32)
    numbers, scale = quantize(jnp.asarray(kernel_IO[None], dtype), kind, dtype)
    found_IO = np.asarray(dequantize(numbers[0], scale[0]), np.float32)
    assert dequantize(numbers[0], scale[0]).dtype == dtype
    largest_IO = np.abs(kernel_IO).reshape(3, 64, 6).max(axis=1).repeat(64, axis=0)
    rounding = {jnp.float32: 1e-6, jnp.bfloat16: 3 * 2.0**-9}[dtype]  # weight, scale and product
    assert (np.abs(found_IO - kernel_IO) <= (step + rounding) * largest_IO).all()


def test_a_group_without_a_weight_stays_zero() -> None:
    for kind in KINDS:
        numbers, scale = quantize(jnp.zeros((1, 64, 2)), kind, jnp.float32)
        np.testing.assert_array_equal(dequantize(numbers[0], scale[0]), 0)


def test_groups_divide_the_inputs() -> None:
    assert [group_size(n) for n in (4096, 11_008, 172, 64, 12, 7, 1, 130)] == [
        64, 64, 43, 64, 12, 7, 1, 26
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_and_its_gradient_are_those_of_the_dequantised_weights(
    kind: Quantization, dtype: DTypeLike
) -> None:
    rng = np.random.default_rng(4)
    kernel, x, up = (rng.normal(size=shape) for shape in ((1, 128, 24), (5, 128), (5, 24)))
    (numbers,), (scale,) = quantize(jnp.asarray(kernel, dtype), kind, dtype)
    y, back = jax.vjp(partial(quantized_product, kernel_IO=numbers, scale_GO=scale),
                      jnp.asarray(x, jnp.float32))  # fmt: skip
    (grad,) = back(jnp.asarray(up, jnp.float32))

    def rounded(array: np.ndarray) -> np.ndarray:
        return np.asarray(jnp.asarray(array, dtype), np.float64)

    weights = np.asarray(dequantize(numbers, scale), np.float64)
    assert y.dtype == grad.dtype == jnp.float32
    np.testing.assert_allclose(y, rounded(x) @ weights, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad, rounded(up) @ weights.T, rtol=1e-4, atol=1e-4)


def parameters(
    sharding_of: Placement, dtype: DTypeLike = jnp.float32
) -> Iterator[tuple[ParamPath, jax.Array]]:
    """Random weights, the same for every sharding."""
    rng = np.random.default_rng(1)
    for path, shape in base_parameters(SHAPE).items():
        array = jnp.asarray(rng.normal(size=shape) * SHAPE.dim**-0.5, dtype)
        yield path, jax.device_put(array, sharding_of(path, shape))


def model_of(
    kind: Quantization,
    shards: Shards = ONE,
    dequantized: bool = False,
    dtype: DTypeLike = "float32",
) -> Llama:
    """A model with quantised weights, or with the weights that these stand for."""
    sharding_of = one_device if shards is ONE else placement(shards)
    arrays = collect(parameters(sharding_of, dtype), kind, sharding_of)
    if dequantized:
        for name in TARGETS:
            scale = arrays.pop(("layers", name, "scale_GO"))
            kernel = arrays["layers", name, "kernel_IO"]
            arrays["layers", name, "kernel_IO"] = jax.vmap(dequantize)(kernel, scale)
        kind = "none"
    model = build(SHAPE, arrays, LORA, 5, shards, kind)
    for number, name in enumerate(TARGETS):  # adapters as after some training: B is not zero
        b_LRO = getattr(model.layers, name).lora_b_RO
        drawn = 0.1 * np.random.default_rng(number).normal(size=b_LRO.shape)
        b_LRO[...] = jax.device_put(jnp.asarray(drawn, jnp.float32), b_LRO[...].sharding)
    return model


def loss_and_gradients(model: Llama, remat: Remat = "none") -> tuple[float, list[np.ndarray]]:
    graph, adapters, base = split_off(model, nnx.LoRAParam)

    @jax.jit
    @jax.value_and_grad
    def loss(adapters: State, base: State) -> jax.Array:
        model = nnx.merge(graph, adapters, base)
        logp = jax.nn.log_softmax(model.logits(model.hidden(TOKENS, remat=remat)[:, :-1]))
        return -jnp.take_along_axis(logp, TOKENS[:, 1:, None], -1).mean()

    value, gradients = loss(adapters, base)
    return float(value), [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_adapters_are_those_over_the_dequantised_weights(kind: Quantization) -> None:
    expected = loss_and_gradients(model_of(kind, dequantized=True))
    assert max(np.abs(leaf).max() for leaf in expected[1]) > 1e-3
    remats: tuple[Remat, ...] = ("none", "full")
    for remat in remats:
        value, gradients = loss_and_gradients(model_of(kind), remat)
        assert value == pytest.approx(expected[0], rel=1e-6)
        for one, two in zip(gradients, expected[1], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def losses(kind: Quantization) -> np.ndarray:
    """The losses of 30 steps on one batch."""
    graph, adapters, base = split_off(model_of(kind), nnx.LoRAParam)
    adam = optax.adam(1e-2)

    def loss(adapters: State, base: State) -> jax.Array:
        model = nnx.merge(graph, adapters, base)
        logp = jax.nn.log_softmax(model.logits(model.hidden(TOKENS)[:, :-1]))
        return -jnp.take_along_axis(logp, TOKENS[:, 1:, None], -1).mean()

    @jax.jit
    def run(adapters: State, base: State) -> jax.Array:
        def step(carry: PyTree, _: None) -> tuple[PyTree, jax.Array]:
            adapters, moments = carry
            value, gradients = jax.value_and_grad(loss)(adapters, base)
            updates, moments = adam.update(gradients, moments)
            return (optax.apply_updates(adapters, updates), moments), value

        return jax.lax.scan(step, (adapters, adam.init(adapters)), None, 30)[1]

    return np.asarray(run(adapters, base))


def test_adapters_learn_over_quantised_weights_as_over_exact_ones() -> None:
    exact, int8, nf4 = (losses(kind) for kind in ("none", *KINDS))
    print(*(curve[[0, 10, 20, 29]].round(3) for curve in (exact, int8, nf4)))
    assert exact[-1] < exact[0] - 0.5
    np.testing.assert_allclose(int8, exact, rtol=1e-3)
    np.testing.assert_allclose(nf4, exact, rtol=5e-3)


def test_bfloat16_weights_stay_what_they_stand_for() -> None:
    quantised, plain = (model_of("nf4", dequantized=is_plain, dtype="bfloat16")
                        for is_plain in (False, True))  # fmt: skip
    assert quantised.layers.up.dtype == jnp.bfloat16
    np.testing.assert_allclose(forward(quantised, TOKENS), forward(plain, TOKENS), atol=1e-5)
    np.testing.assert_array_equal(
        quantised.layers.up.merged_kernel(1), plain.layers.up.merged_kernel(1)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_holds_the_same_weights_and_computes_the_same(kind: Quantization) -> None:
    shards = Shards(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    alone, spread = model_of(kind), model_of(kind, shards)
    for name in TARGETS:
        one, two = getattr(alone.layers, name), getattr(spread.layers, name)
        for attribute in ("kernel_IO", "scale_GO"):
            here, there = getattr(one, attribute)[...], getattr(two, attribute)[...]
            np.testing.assert_array_equal(np.asarray(here), np.asarray(there))
            assert there.addressable_shards[0].data.size * 4 == here.size
    expected, found = loss_and_gradients(alone), loss_and_gradients(spread)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for leaf, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_sharding_moves_no_weights(kind: Quantization) -> None:
    shards = Shards(make_mesh(MeshConfig(tensor=2), jax.devices()[:2]))

    def moved(kind: Quantization) -> list[tuple[str, int]]:
        graph, params = nnx.split(model_of(kind, shards))
        lowered = jax.jit(lambda params: nnx.merge(graph, params).hidden(TOKENS)).lower(params)
        found = collectives(lowered.compile().as_text() or "", 2)
        return sorted((one.kind, one.total_bytes) for one in found)

    assert moved(kind) == moved("none") != []


def test_a_mesh_that_would_cut_groups_is_refused() -> None:
    shards = Shards(make_mesh(MeshConfig(fsdp=4), jax.devices()[:4]))
    check_divides(SHAPE, shards)
    with pytest.raises(UserError, match="width in groups of 64 weights, 2, cannot be divided by f"):
        check_divides(SHAPE, shards, "int8")


@pytest.mark.parametrize(
    ("ranker", "tuning", "complaint"),
    [
        (
            {"weights": "w"},
            {},
            "quantize nf4 is for weights that stay frozen: set weights and lora",
        ),
        ({"lora": {}}, {}, "quantize nf4 is for weights that stay frozen: set weights and lora"),
        ({"weights": "w"}, {"mode": "full"}, "quantize nf4 is for weights that stay frozen"),
        ({"weights": "w", "lora": {}}, {"mode": "full"}, "finetune.mode full trains no adapters"),
    ],
)
def test_what_does_not_stay_frozen_is_not_quantised(
    ranker: dict[str, object], tuning: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        parse_config(
            {"name": "x", "ranker": {"quantize": "nf4", **ranker}, "finetune": tuning}, "x"
        )
    assert "\n" not in str(caught.value)


def test_without_qwix_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"needs the package qwix: pip install 'palr-jax\[quant"):
        collect(parameters(one_device), "int8")


def divergence(model: Llama, other: Llama, tokens: jax.Array) -> float:
    """Mean Kullback-Leibler divergence of the next tokens' distributions, in nats."""
    logp, logq = (jax.nn.log_softmax(forward(one, tokens)) for one in (model, other))
    return float((jnp.exp(logp) * (logp - logq)).sum(-1).mean())


@pytest.mark.parametrize(("kind", "share", "limit"), [("int8", 0.0065, 0.002), ("nf4", 0.1, 0.3)])
@pytest.mark.skipif(not STORIES.exists(), reason="the model stories260K is not here")
def test_a_real_model_keeps_its_distributions(
    kind: Quantization, share: float, limit: float
) -> None:
    mean, _ = quantization_error(STORIES, kind, "float32")
    assert share / 3 < mean < share
    tokens = jnp.asarray(np.load(STORIES / "golden_logits.npz")["input_ids"])[None]
    plain, quantised = load(STORIES)[0], load(STORIES, quantization=kind)[0]
    assert 0 < divergence(plain, quantised, tokens) < limit


@pytest.mark.parametrize(("kind", "limit"), [("int8", 2e-5), ("nf4", 4e-3)])
def test_a_random_model_keeps_its_distributions(kind: Quantization, limit: float) -> None:
    assert 0 < divergence(model_of("none"), model_of(kind), TOKENS) < limit


def test_the_error_of_a_checkpoint_is_that_of_the_reference(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", VARIANTS["llama3"])
    kernels = [v.T for k, v in tensors(VARIANTS["llama3"]).items() if "proj" in k]
    errors = [reference(kernel, "nf4")[1] - kernel for kernel in kernels]
    squares, total = (sum((one**2).sum() for one in many) for many in (errors, kernels))
    mean, largest = quantization_error(tmp_path / "hf", "nf4", "float32")
    assert mean == pytest.approx((squares / total) ** 0.5, rel=1e-4)
    assert largest == pytest.approx(max(np.abs(one).max() for one in errors), rel=1e-4)
