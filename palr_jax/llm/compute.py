"""How the layers of a LLaMA are computed; the choices change speed, not results."""

from dataclasses import dataclass

from palr_jax.llm.attention import XLA, Attention, attention_on
from palr_jax.parallel.sharding import TENSOR, Shards


@dataclass(frozen=True)
class Compute:
    """How layers are computed.

    Attributes:
        attention: the implementation of self-attention.
        has_bfloat16: whether the platform computes in bfloat16. If so, the residual stream and the
            activations between products have the dtype of the weights, which halves memory and
            traffic. XLA:CPU would convert back and forth: there activations are float32, and
            bfloat16 arrays are moved as bits (see `palr_jax.llm.bits`).
        shortest_prefix: minimum length in tokens of a shared prefix that is computed only once. On
            accelerators, splitting and joining rows moves more bytes than a short prefix saves, by
            the TPU compiler's count; 256 is estimated from that and not measured.
        shards: the mesh that rows and weights are divided over; None on a single device.
    """

    attention: Attention = XLA
    has_bfloat16: bool = False
    shortest_prefix: int = 1
    shards: Shards | None = None


def compute_on(platform: str) -> Compute:
    """How layers are computed on one device.

    Args:
        platform: platform name of the device, as in `jax.Device.platform`.
    """
    return _compute(platform, attention_on(platform))


def compute_over(shards: Shards) -> Compute:
    """How layers are computed on the devices of a mesh."""
    platform = shards.mesh.devices.flat[0].platform
    if shards.is_one_device:
        return _compute(platform, attention_on(platform), shards)
    head_axis = TENSOR if shards.mesh.shape[TENSOR] > 1 else None
    attention = attention_on(platform, shards.mesh, shards.rules.batch, head_axis)
    return _compute(platform, attention, shards)


def _compute(platform: str, attention: Attention, shards: Shards | None = None) -> Compute:
    is_cpu = platform == "cpu"
    return Compute(
        attention, has_bfloat16=not is_cpu, shortest_prefix=1 if is_cpu else 256, shards=shards
    )
