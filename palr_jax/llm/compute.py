"""How the layers of a LLaMA are computed on a platform; what they compute is the same."""

from dataclasses import dataclass

from palr_jax.llm.attention import XLA, Attention, attention_on


@dataclass(frozen=True)
class Compute:
    """How layers are computed.

    Attributes:
        attention: who computes the attention of rows over themselves.
        has_bfloat16: whether the platform computes in bfloat16. Then the residual stream and what
            is computed between products have the type of the weights, which halves what a layer
            leaves in memory and moves. XLA:CPU would only convert back and forth: there they are
            float32, and bfloat16 is moved as bits (see `palr_jax.llm.bits`).
        shortest_prefix: tokens from which on a prefix of all rows is computed once only. On
            accelerators taking rows apart and together moves more bytes than a short one saves, as
            the TPU compiler counts them; 256 is estimated from that and not measured.
    """

    attention: Attention = XLA
    has_bfloat16: bool = False
    shortest_prefix: int = 1


def compute_on(platform: str, attention: Attention | None = None) -> Compute:
    """How layers are computed on a platform.

    Args:
        platform: of the devices, as `jax.Device` names it.
        attention: by default that of one device.
    """
    is_cpu = platform == "cpu"
    return Compute(
        attention or attention_on(platform),
        has_bfloat16=not is_cpu,
        shortest_prefix=1 if is_cpu else 256,
    )
