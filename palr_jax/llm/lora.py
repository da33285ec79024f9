"""A linear layer that may carry a low-rank adapter.

Shapes: N rows, I inputs, O outputs, R rank; a leading L where layers are stacked.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from palr_jax.llm.config import LoRAConfig, Target
from palr_jax.llm.product import product


class Linear(nnx.Module):
    """y = x W, plus (alpha / rank) · x A B with an adapter (Hu et al. 2021, section 4.1).

    A starts as a random projection and B at zero, so a fresh adapter changes nothing. The
    adapter keeps its float32 whatever the type of W, and is rounded to that type for a product.
    """

    def __init__(
        self, name: Target, inputs: int, outputs: int, lora: LoRAConfig | None, rngs: nnx.Rngs
    ) -> None:
        self.kernel_IO = nnx.Param(
            jax.random.normal(rngs.params(), (inputs, outputs)) * inputs**-0.5
        )
        adapted = lora is not None and name in lora.targets
        self.scale = lora.alpha / lora.rank if lora and adapted else 0.0
        if lora and adapted:
            self.lora_a_IR = nnx.LoRAParam(
                jax.random.normal(rngs.params(), (inputs, lora.rank)) * inputs**-0.5
            )
            self.lora_b_RO = nnx.LoRAParam(jnp.zeros((lora.rank, outputs)))

    def __call__(self, x_NI: jax.Array, dropped_NI: jax.Array | None = None) -> jax.Array:
        """[N, I] → [N, O] in the same type.

        Rows are flat: XLA:CPU copies the gradient of [B, T, I] otherwise. The adapter reads
        `dropped_NI` if it is given: the same input after dropout.
        """
        kernel_IO = self.kernel_IO[...]
        y_NO = product(x_NI, kernel_IO)
        if not self.scale:
            return y_NO
        a_IR, b_RO = (
            part[...].astype(kernel_IO.dtype) for part in (self.lora_a_IR, self.lora_b_RO)
        )
        low_NR = product(x_NI if dropped_NI is None else dropped_NI, a_IR)
        low_NR = checkpoint_name(low_NR * self.scale, "product")
        return y_NO + product(low_NR, b_RO)

    def merged_kernel(self, layer: int) -> jax.Array:
        """W + (alpha / rank) · A B of one of the stacked layers, [I, O], in the type of W."""
        kernel_IO = self.kernel_IO[...][layer]
        if not self.scale:
            return kernel_IO
        update_IO = self.lora_a_IR[...][layer] @ self.lora_b_RO[...][layer] * self.scale
        return (kernel_IO.astype(jnp.float32) + update_IO).astype(kernel_IO.dtype)


def drop_out(x_NI: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Sets each value to zero with chance `rate` and scales the others to keep the mean.

    The random bits are a hash of the place and the key (twice the finaliser of MurmurHash3).
    They cost so little that a backward pass makes them again instead of reading them; those of
    `jax.random` took a tenth of a whole training step on a CPU.
    """
    first, second = jax.random.bits(key, (2,))
    row_N1 = jnp.arange(x_NI.shape[0], dtype=jnp.uint32)[:, None] * jnp.uint32(x_NI.shape[1])
    place_NI = row_N1 + jnp.arange(x_NI.shape[1], dtype=jnp.uint32)
    bits_NI = _scramble(_scramble(place_NI ^ first) + second)
    kept_NI = bits_NI >= jnp.uint32(round(rate * 2**32))
    return jnp.where(kept_NI, x_NI * (1 / (1 - rate)), 0).astype(x_NI.dtype)


def _scramble(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
