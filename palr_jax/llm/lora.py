"""A linear layer that may carry a low-rank adapter.

Shapes: N rows, I inputs, O outputs, R rank; a leading L where layers are stacked.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.llm.config import TARGETS, LoRAConfig, Target


class Linear(nnx.Module):
    """y = x W, plus (alpha / rank) · x A B with an adapter (Hu et al. 2021, section 4.1).

    A starts as a random projection and B at zero, so a fresh adapter changes nothing. The
    adapter keeps its float32 whatever the type of W, and is computed in the type of x.
    """

    def __init__(
        self, name: Target, inputs: int, outputs: int, lora: LoRAConfig | None, rngs: nnx.Rngs
    ) -> None:
        self.kernel_IO = nnx.Param(
            jax.random.normal(rngs.params(), (inputs, outputs)) * inputs**-0.5
        )
        adapted = lora is not None and name in lora.targets
        self.scale = lora.alpha / lora.rank if lora and adapted else 0.0
        self.dropout = lora.dropout if lora and adapted else 0.0
        self.place = TARGETS.index(name)
        if lora and adapted:
            self.lora_a_IR = nnx.LoRAParam(
                jax.random.normal(rngs.params(), (inputs, lora.rank)) * inputs**-0.5
            )
            self.lora_b_RO = nnx.LoRAParam(jnp.zeros((lora.rank, outputs)))

    def __call__(self, x_NI: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """[N, I] → [N, O]. Rows are flat: XLA:CPU copies the gradient of [B, T, I] otherwise.

        With a key the adapter's inputs are dropped out; the linears of a layer may share it.
        """
        y_NO = x_NI @ self.kernel_IO[...].astype(x_NI.dtype)
        if not self.scale:
            return y_NO
        if self.dropout and dropout_key is not None:
            key = jax.random.fold_in(dropout_key, self.place)
            kept_NI = jax.random.bernoulli(key, 1 - self.dropout, x_NI.shape)
            x_NI = jnp.where(kept_NI, x_NI / (1 - self.dropout), 0)
        low_NR = x_NI @ self.lora_a_IR[...].astype(x_NI.dtype)
        return y_NO + (low_NR @ self.lora_b_RO[...].astype(x_NI.dtype)) * self.scale

    def merged_kernel(self, layer: int) -> jax.Array:
        """W + (alpha / rank) · A B of one of the stacked layers, [I, O], in the type of W."""
        kernel_IO = self.kernel_IO[...][layer]
        if not self.scale:
            return kernel_IO
        update_IO = self.lora_a_IR[...][layer] @ self.lora_b_RO[...][layer] * self.scale
        return (kernel_IO.astype(jnp.float32) + update_IO).astype(kernel_IO.dtype)
