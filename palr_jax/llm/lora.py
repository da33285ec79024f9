"""A linear layer with an optional bias and an optional low-rank adapter.

Shapes: N rows, I inputs, O outputs, R rank; a leading L if layers are stacked.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from palr_jax.llm.config import LoRAConfig, Target
from palr_jax.llm.product import product


class Linear(nnx.Module):
    """y = x W, plus b with a bias, plus (alpha / rank) · x A B with an adapter.

    The adapter is that of Hu et al. 2021, section 4.1.

    A is initialised at random and B to zero, so a new adapter changes nothing. Adapters are stored
    in float32 and rounded to the dtype of W for a product.
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
        kernel_IO = self.kernel_IO[...]
        y_NO = product(x_NI, kernel_IO)
        if self.has_bias:
            y_NO += self.bias_O[...].astype(y_NO.dtype)
        if not self.scale:
            return y_NO
        a_IR, b_RO = (
            part[...].astype(kernel_IO.dtype) for part in (self.lora_a_IR, self.lora_b_RO)
        )
        low_NR = product(x_NI if dropped_NI is None else dropped_NI, a_IR)
        low_NR = checkpoint_name(low_NR * self.scale, "product")
        return y_NO + product(low_NR, b_RO)

    def merged_kernel(self, layer: int) -> jax.Array:
        """W + (alpha / rank) · A B of one of the stacked layers, [I, O], in the dtype of W."""
        kernel_IO = self.kernel_IO[...][layer]
        if not self.scale:
            return kernel_IO
        update_IO = self.lora_a_IR[...][layer] @ self.lora_b_RO[...][layer] * self.scale
        return (kernel_IO.astype(jnp.float32) + update_IO).astype(kernel_IO.dtype)
