"""Quantised weights of the linears, by qwix: 8-bit integers, or the 4-bit NormalFloat of QLoRA.

Weights of an output that belong to consecutive inputs form a group with one scale, so that a shard
of the weights has its own scales. NormalFloat is described in Dettmers et al. 2023, section 3; a
group of 64 is theirs.

Shapes: N rows, I inputs, O outputs, G groups of inputs, L layers.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from palr_jax.errors import UserError
from palr_jax.llm.bits import from_bits, to_bits
from palr_jax.llm.config import Quantization
from palr_jax.llm.product import product

_GROUP = 64


def group_size(inputs: int) -> int:
    """Inputs that share a scale: 64, or the largest number below that divides them."""
    return max(size for size in range(1, min(_GROUP, inputs) + 1) if inputs % size == 0)


def bytes_per_weight(kind: Quantization) -> float:
    """Bytes of a weight in bfloat16 or quantised, with its share of a bfloat16 scale."""
    return {"none": 2.0, "int8": 1 + 2 / _GROUP, "nf4": 0.5 + 2 / _GROUP}[kind]


def qwix() -> ModuleType:
    """The package; it takes a while to import, and few runs need it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import qwix  # noqa: PLC0415
    except ModuleNotFoundError:
        raise UserError(
            "ranker.quantize needs the package qwix: pip install 'palr-jax[quantize]'"
        ) from None
    return qwix


def quantize(
    kernel_LIO: jax.Array, kind: Quantization, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """The quantised weights [L, I, O], int8 or uint4, and their scales [L, G, O].

    Layers are quantised one after the other, so that only one is in memory in float32.

    Args:
        kernel_LIO: the weights.
        kind: int8 or nf4.
        dtype: of the scales, and so of what `dequantize` returns.

    Raises:
        UserError: qwix is not installed.
    """
    quantized = partial(
        qwix().quantize,
        qtype=jnp.int8 if kind == "int8" else kind,
        tiled_axes={0: group_size(kernel_LIO.shape[1])},
        scale_dtype=dtype,
    )

    def one_layer(bits_IO: jax.Array) -> tuple[jax.Array, jax.Array]:
        array = _by_output(quantized)(from_bits(bits_IO).astype(jnp.float32))
        return array.qvalue, to_bits(array.scale)

    return from_bits(jax.lax.map(one_layer, to_bits(kernel_LIO)))


def dequantize(kernel_IO: jax.Array, scale_GO: jax.Array) -> jax.Array:
    """The weights [I, O] in the dtype of the scales."""
    kind = "nf4" if kernel_IO.dtype == jnp.uint4 else kernel_IO.dtype
    array = qwix().QArray(kernel_IO, scale_GO, qtype=kind)
    weights_IO: jax.Array = _by_output(qwix().dequantize)(array)
    return weights_IO


@partial(jax.jit, static_argnums=1)
def error_sums(kernel_LIO: jax.Array, kind: Quantization) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the quantised weights: the sum of squared errors, that of squares, the largest error."""

    def one_layer(bits_IO: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        kernel_IO = from_bits(bits_IO)
        (quantized_IO,), (scale_GO,) = quantize(kernel_IO[None], kind, kernel_IO.dtype)
        wide_IO = kernel_IO.astype(jnp.float32)
        error_IO = dequantize(quantized_IO, scale_GO).astype(jnp.float32) - wide_IO
        return (error_IO**2).sum(), (wide_IO**2).sum(), jnp.abs(error_IO).max()

    error_L, square_L, largest_L = jax.lax.map(one_layer, to_bits(kernel_LIO))
    return error_L.sum(), square_L.sum(), largest_L.max()


# qwix flattens what it looks up in NormalFloat's table. Applied to one output at a time, it does
# not flatten the axes that are sharded over a mesh, which would gather the weights.
_by_output = partial(jax.vmap, in_axes=1, out_axes=1)


@jax.custom_vjp
def quantized_product(x_NI: jax.Array, kernel_IO: jax.Array, scale_GO: jax.Array) -> jax.Array:
    """x W like `product`, for weights W that are quantised and have no gradient.

    The backward pass dequantises once more: stored, the weights of all layers would take the memory
    that quantisation saves.
    """
    return product(x_NI, dequantize(kernel_IO, scale_GO))


def _forward(
    x_NI: jax.Array, kernel_IO: jax.Array, scale_GO: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return quantized_product(x_NI, kernel_IO, scale_GO), (kernel_IO, scale_GO)


def _backward(
    kept: tuple[jax.Array, jax.Array], grad_NO: jax.Array
) -> tuple[jax.Array, None, None]:
    return product(grad_NO, dequantize(*kept).T), None, None


quantized_product.defvjp(_forward, _backward)
