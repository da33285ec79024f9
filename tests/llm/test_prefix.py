"""A shared prefix saves computation and does not change results."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.llm.compute import compute_on
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import Prefix
from palr_jax.trees import State
from tests.programs import compiled

CONFIG = LlamaConfig(
    vocab_size=61, dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=48,
    max_length=64, tie_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(("length", "groups"), [(0, 1), (5, 1), (5, 3), (5, 6), (9, 2)])
def test_tokens_and_rows_are_inverse(length: int, groups: int) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 9, 4))
    rows[:, :length] = rows[0, :length]
    prefix = Prefix(length, groups)
    tokens = prefix.tokens(jnp.asarray(rows))
    assert len(tokens) == groups * length + 6 * (9 - length)
    np.testing.assert_array_equal(prefix.rows(tokens, 6), rows.astype(np.float32))


@pytest.mark.parametrize(("length", "groups"), [(1, 1), (7, 1), (7, 2), (20, 1)])
def test_a_shared_prefix_changes_nothing(length: int, groups: int) -> None:
    model = Llama(CONFIG, nnx.Rngs(params=0))
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 61, (4, 24))
    tokens[:, :length] = tokens[0, :length]
    lengths = jnp.array([20, 24, 21, 23])
    plain, plain_cache = compiled(Llama.prefill, model, jnp.asarray(tokens), lengths)
    shared, cache = compiled(
        Llama.prefill, model, jnp.asarray(tokens), lengths, prefix=Prefix(length, groups)
    )
    np.testing.assert_allclose(shared, plain, atol=1e-5)
    np.testing.assert_allclose(cache.k_LBGSK, plain_cache.k_LBGSK, atol=1e-5)
    np.testing.assert_allclose(cache.v_LBGSK, plain_cache.v_LBGSK, atol=1e-5)


def test_a_shared_prefix_is_multiplied_once_if_that_pays() -> None:
    def flops(prefix: Prefix, shortest: int = 1) -> float:
        compute = replace(compute_on("cpu"), shortest_prefix=shortest)
        model = Llama(CONFIG, nnx.Rngs(params=0), compute=compute)
        graph, weights = nnx.split(model)

        def hidden(weights: State, tokens_BT: jax.Array) -> jax.Array:
            return nnx.merge(graph, weights).hidden(tokens_BT, prefix=prefix)

        tokens_BT = jax.ShapeDtypeStruct((8, 64), jnp.int32)
        costs = jax.jit(hidden).lower(weights, tokens_BT).compile().cost_analysis()
        assert costs is not None
        return float(costs["flops"])

    # Of 512 tokens 7 x 48 are saved; attention, which is not, is a small part here.
    assert flops(Prefix(48)) < 0.6 * flops(Prefix())
    assert flops(Prefix(48), shortest=48) == flops(Prefix(48))
    assert flops(Prefix(48), shortest=49) == flops(Prefix())
