"""Products with weights, and bits that are moved, against plain arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.llm.bits import from_bits, kept, to_bits
from palr_jax.llm.product import product


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 3, 8)], ids=["narrower", "wider"])
def test_of_float32_it_is_the_plain_product(shape: tuple[int, int, int]) -> None:
    N, I, O = shape  # noqa: E741
    x, w, up = draw(N, I), draw(I, O, seed=1), draw(N, O, seed=2)
    y, back = jax.vjp(product, x, w)
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    grad_x, grad_w = back(up)
    np.testing.assert_allclose(grad_x, up @ w.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad_w, x.T @ up, rtol=1e-5, atol=1e-6)


def test_of_bfloat16_only_what_goes_in_is_rounded() -> None:
    x, w, up = draw(64, 512), draw(512, 32, seed=1).astype(jnp.bfloat16), draw(64, 32, seed=2)

    def rounded(array: jax.Array) -> np.ndarray:
        return np.asarray(array.astype(jnp.bfloat16), np.float64)

    y, back = jax.vjp(lambda x: product(x, w), x)
    (grad_x,) = back(up)
    assert y.dtype == grad_x.dtype == jnp.float32
    # Sums in bfloat16 would have errors of a few percent.
    np.testing.assert_allclose(y, rounded(x) @ rounded(w), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_x, rounded(up) @ rounded(w).T, rtol=1e-4, atol=1e-4)


def test_no_product_multiplies_two_types() -> None:
    w = draw(8, 4).astype(jnp.bfloat16)
    program = jax.make_jaxpr(jax.grad(lambda x: product(x, w).sum()))(draw(3, 8)).jaxpr

    def type_of(abstract: Any) -> str:  # JAX's types do not say that it is an array
        return str(abstract.dtype)

    types = [
        {type_of(operand.aval) for operand in equation.invars}
        for equation in program.eqns
        if equation.primitive.name == "dot_general"
    ]
    assert types == [{"bfloat16"}] * len(types)
    assert len(types) >= 2


def test_bits_bring_back_what_went_in() -> None:
    tree = {"half": draw(3, 4).astype(jnp.bfloat16), "whole": draw(2), "count": jnp.arange(3)}
    bits = to_bits(tree)
    assert [x.dtype for x in jax.tree.leaves(bits)] == [jnp.int32, jnp.uint16, jnp.float32]
    for one, two in zip(jax.tree.leaves(from_bits(bits)), jax.tree.leaves(tree), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_what_is_kept_lets_gradients_through() -> None:
    x = draw(4).astype(jnp.bfloat16)
    grad = jax.grad(lambda x: (kept(x).astype(jnp.float32) ** 2).sum())(x)
    np.testing.assert_array_equal(grad, 2 * x)
