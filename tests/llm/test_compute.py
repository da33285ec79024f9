"""How layers are computed changes rounding only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.llm.attention import XLA, Attention
from palr_jax.llm.compute import Compute, compute_on
from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat
from palr_jax.llm.llama import Llama
from palr_jax.trees import State, split_off
from tests.programs import forward

SHAPE = LlamaConfig(
    vocab_size=61, dim=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=96,
    max_length=64,
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 24)))


def made(compute: Compute) -> Llama:
    """A model with bfloat16 weights and adapters that are not zero."""
    lora = LoRAConfig(rank=4, alpha=8, dropout=0.0)
    model = Llama(SHAPE, nnx.Rngs(params=0), lora, compute)
    graph, adapters, base = split_off(model, nnx.LoRAParam)
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    adapters = jax.tree.map(lambda x: x + 0.02, adapters)
    return nnx.merge(graph, adapters, base)


def gradients(model: Llama, remat: Remat) -> list[np.ndarray]:
    graph, adapters, base = split_off(model, nnx.LoRAParam)

    def loss(adapters: State) -> jax.Array:
        hidden = nnx.merge(graph, adapters, base).hidden(TOKENS, remat=remat)
        return (hidden.astype(jnp.float32) ** 2 * jnp.arange(SHAPE.dim)).mean()

    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(adapters))]


def test_a_platform_with_bfloat16_keeps_the_residual_stream_in_it() -> None:
    for model, kind in (
        (made(Compute()), jnp.float32),
        (made(Compute(has_bfloat16=True)), jnp.bfloat16),
    ):
        assert jax.eval_shape(model.hidden, TOKENS).dtype == kind
        # Logits are float32 on every platform.
        assert jax.eval_shape(model, TOKENS).dtype == jnp.float32


def test_the_residual_stream_in_bfloat16_agrees_within_its_rounding() -> None:
    wide, narrow = (forward(made(Compute(has_bfloat16=has)), TOKENS) for has in (False, True))
    np.testing.assert_allclose(narrow, wide, atol=0.03 * np.abs(wide).max())
    assert np.abs(np.asarray(narrow - wide)).max() > 0


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_its_gradients_point_the_same_way(remat: Remat) -> None:
    wide = gradients(made(Compute()), remat)
    narrow = gradients(made(Compute(has_bfloat16=True)), remat)
    for one, two in zip(narrow, wide, strict=True):
        assert one.dtype == np.float32
        cosine = (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)
        assert cosine > 0.998


def test_what_a_platform_gets() -> None:
    assert compute_on("cpu") == Compute(Attention("cpu"), has_bfloat16=False)
    assert compute_on("tpu") == Compute(Attention("splash"), has_bfloat16=True, shortest_prefix=256)
    assert Llama(SHAPE, nnx.Rngs(params=0)).compute == compute_on(jax.default_backend())


def test_a_kernel_for_whole_sequences_is_not_given_tries() -> None:
    assert compute_on("tpu").attention.of_tries() == XLA
    assert compute_on("cpu").attention.of_tries() == Attention("cpu")
