"""A linear layer that may carry a low-rank adapter.

Shapes: N rows, I inputs, O outputs, R rank.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.llm.config import LoRAConfig


class Linear(nnx.Module):
    """y = x W, plus (alpha / rank) · x A B with an adapter (Hu et al. 2021, section 4.1).

    A starts as a random projection and B at zero, so a fresh adapter changes nothing.
    """

    def __init__(self, inputs: int, outputs: int, lora: LoRAConfig | None, rngs: nnx.Rngs) -> None:
        self.kernel_IO = nnx.Param(
            jax.random.normal(rngs.params(), (inputs, outputs)) * inputs**-0.5
        )
        self.scale = lora.alpha / lora.rank if lora else 0.0
        if lora:
            self.lora_a_IR = nnx.LoRAParam(
                jax.random.normal(rngs.params(), (inputs, lora.rank)) * inputs**-0.5
            )
            self.lora_b_RO = nnx.LoRAParam(jnp.zeros((lora.rank, outputs)))

    def __call__(self, x_NI: jax.Array) -> jax.Array:
        """[N, I] → [N, O]. Rows are flat: XLA:CPU copies the gradient of [B, T, I] otherwise."""
        y_NO = x_NI @ self.kernel_IO[...].astype(x_NI.dtype)
        if not self.scale:
            return y_NO
        low_NR = x_NI @ self.lora_a_IR[...].astype(x_NI.dtype)
        return y_NO + (low_NR @ self.lora_b_RO[...].astype(x_NI.dtype)) * self.scale
