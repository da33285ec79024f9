"""Rotary position embeddings (Su et al. 2021), plain or scaled for long sequences.

Shapes: H heads, K head size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from palr_jax.llm.config import LinearScaling, Llama3Scaling, LlamaConfig


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per position of each pair of coordinates of a head, [K / 2], float32."""
    exponent_K = np.arange(0, config.head_dim, 2) / config.head_dim
    plain_K = config.rope_theta**-exponent_K
    match config.rope_scaling:
        case None:
            scaled_K = plain_K
        case LinearScaling(factor):
            scaled_K = plain_K / factor
        case Llama3Scaling() as scaling:
            scaled_K = plain_K / llama3_divisors(plain_K, scaling)
    return scaled_K.astype(np.float32)


def llama3_divisors(plain_K: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """The divisors of the plain frequencies in LLaMA 3.1, [K / 2].

    The unscaled share of a frequency rises linearly from 0 to 1 as its number of turns within the
    original length rises from `low_freq_factor` to `high_freq_factor`.
    """
    turns_K = scaling.original_max_length * plain_K / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    unscaled_K = np.clip((turns_K - scaling.low_freq_factor) / span, 0, 1)
    return 1 / (unscaled_K + (1 - unscaled_K) / scaling.factor)


def rope_turns(position_BT: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotation of each pair, each [B, T, K / 2], float32."""
    angle_BTK = position_BT[..., None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(angle_BTK), jnp.sin(angle_BTK)


def rotate(x_BTHK: jax.Array, turns_BTK: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates pair (i, i + K / 2) of every head by angle i (RoPE in the half-split layout)."""
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = (turn_BTK[:, :, None] for turn_BTK in turns_BTK)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHK.dtype)
