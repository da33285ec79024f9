"""A linear layer with an optional bias and an optional low-rank adapter.

Shapes: N rows, I inputs, O outputs, R rank, G groups of inputs; a leading L if layers are stacked.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from palr_jax.llm.config import LoRAConfig, Quantization, Target
from palr_jax.llm.product import product
from palr_jax.llm.quantize import dequantize, quantize, quantized_product


class Scale(nnx.Variable[jax.Array]):
    """The scales of quantised weights."""


class Linear(nnx.Module):
    """y = x W, plus b with a bias, plus (alpha / rank) · x A B with an adapter.

    The adapter is that of Hu et al. 2021, section 4.1.

    A is initialised at random and B to zero, so a new adapter changes nothing. Adapters are stored
    in float32 and rounded to the dtype of W for a product. W may be quantised: then `kernel_IO` are
    integers, and `dtype` is that of the weights they stand for.
    """

    def __init__(
        self,
        name: Target,
        inputs: int,
        outputs: int,
        lora: LoRAConfig | None,
        rngs: nnx.Rngs,
        bias: bool = False,
    ) -> None:
        self.kernel_IO = nnx.Param(
            jax.random.normal(rngs.params(), (inputs, outputs)) * inputs**-0.5
        )
        self.is_quantized = False
        self.has_bias = bias
        if bias:
            self.bias_O = nnx.Param(jnp.zeros((outputs,)))
        adapted = lora is not None and name in lora.targets
        self.scale = lora.alpha / lora.rank if lora and adapted else 0.0
        if lora and adapted:
            self.lora_a_IR = nnx.LoRAParam(
                jax.random.normal(rngs.params(), (inputs, lora.rank)) * inputs**-0.5
            )
            self.lora_b_RO = nnx.LoRAParam(jnp.zeros((lora.rank, outputs)))

    def __call__(self, x_NI: jax.Array, dropped_NI: jax.Array | None = None) -> jax.Array:
        """[N, I] → [N, O] in the same dtype.

        Rows are flat because XLA:CPU would copy the gradient of [B, T, I]. The adapter reads
        `dropped_NI`, the input after dropout, if it is given.
        """
        if self.is_quantized:
            y_NO = quantized_product(x_NI, self.kernel_IO[...], self.scale_GO[...])
        else:
            y_NO = product(x_NI, self.kernel_IO[...])
        if self.has_bias:
            y_NO += self.bias_O[...].astype(y_NO.dtype)
        if not self.scale:
            return y_NO
        a_IR, b_RO = (part[...].astype(self.dtype) for part in (self.lora_a_IR, self.lora_b_RO))
        low_NR = product(x_NI if dropped_NI is None else dropped_NI, a_IR)
        low_NR = checkpoint_name(low_NR * self.scale, "product")
        return y_NO + product(low_NR, b_RO)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of W in products."""
        return (self.scale_GO if self.is_quantized else self.kernel_IO).dtype

    def quantize(self, kind: Quantization, dtype: DTypeLike) -> None:
        """Quantises W of all stacked layers; without gradients from here on.

        Args:
            kind: int8 or nf4.
            dtype: the dtype of W in products.

        Raises:
            UserError: qwix is not installed.
        """
        kernel_LIO, scale_LGO = quantize(self.kernel_IO[...], kind, dtype)
        self.kernel_IO, self.scale_GO = nnx.Param(kernel_LIO), Scale(scale_LGO)
        self.is_quantized = True

    def merged_kernel(self, layer: int) -> jax.Array:
        """W + (alpha / rank) · A B of one of the stacked layers, [I, O], in the dtype of W."""
        kernel_IO = self.kernel_IO[...][layer]
        if self.is_quantized:
            kernel_IO = dequantize(kernel_IO, self.scale_GO[...][layer])
        if not self.scale:
            return kernel_IO
        update_IO = self.lora_a_IR[...][layer] @ self.lora_b_RO[...][layer] * self.scale
        return (kernel_IO.astype(jnp.float32) + update_IO).astype(kernel_IO.dtype)
