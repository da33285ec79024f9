"""Products with weights.

Shapes: N rows, I inputs, O outputs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def product(x_NI: jax.Array, weight_IO: jax.Array) -> jax.Array:
    """x W, accumulated in float32 and returned in the dtype of x, [N, O].

    Inputs, and gradients in the backward pass, are rounded to the dtype of the weights. Matrix
    units multiply bfloat16 and accumulate in float32; on CPUs with AVX-512 such products are twice
    as fast as float32 products, and returning bfloat16 is no faster than returning float32. JAX's
    derivative would multiply float32 gradients with bfloat16 weights, which no hardware supports:
    the weights would be converted first.
    """
    return _product(x_NI, weight_IO, x_NI.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_NI: jax.Array, weight_IO: jax.Array, dtype: DTypeLike) -> jax.Array:
    return _forward(x_NI, weight_IO, dtype)[0]


def _forward(
    x_NI: jax.Array, weight_IO: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x_NI = x_NI.astype(weight_IO.dtype)
    return _dot(x_NI, 1, weight_IO, 0, dtype), (x_NI, weight_IO)


def _backward(
    dtype: DTypeLike, kept: tuple[jax.Array, jax.Array], grad_NO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_NI, weight_IO = kept
    grad_NO = grad_NO.astype(weight_IO.dtype)
    # A sum over rows: XLA:CPU is up to five times as fast if the narrow matrix comes first.
    if x_NI.shape[1] <= grad_NO.shape[1]:
        grad_IO = _dot(x_NI, 0, grad_NO, 0)
    else:
        grad_IO = _dot(grad_NO, 0, x_NI, 0).T
    grad_NI = _dot(grad_NO, 1, weight_IO, 1, dtype)
    return grad_NI, grad_IO.astype(weight_IO.dtype)


_product.defvjp(_forward, _backward)


def _dot(
    left: jax.Array,
    left_axis: int,
    right: jax.Array,
    right_axis: int,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=dtype)
