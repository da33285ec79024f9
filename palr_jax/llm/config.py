"""The shape of a LLaMA or of a model like it, and of its LoRA adapters."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field

# What the backward pass recomputes instead of storing it.
Remat = Literal["none", "dots", "full"]
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
TARGETS: tuple[Target, ...] = get_args(Target)
# How frozen weights are stored.
Quantization = Literal["none", "int8", "nf4"]
# Kinds of models, by their names in Hugging Face's configs.
Family = Literal["llama", "mistral", "qwen2", "qwen3"]

# No array has a longer axis; a larger number means a damaged file.
Positive = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


@dataclass(frozen=True)
class LinearScaling:
    """RoPE with all positions divided by a constant (Chen et al. 2023, position interpolation).

    Attributes:
        factor: every position is divided by it.
    """

    factor: PositiveFloat


@dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaled as in LLaMA 3.1: slow rotations by `factor`, fast ones not at all.

    Attributes:
        factor: frequencies with a wavelength over original_max_length / low_freq_factor are
            divided by it.
        low_freq_factor: see `factor`.
        high_freq_factor: frequencies with a wavelength under original_max_length /
            high_freq_factor are unchanged; those between the two bounds are interpolated.
        original_max_length: maximum sequence length before the scaling, in tokens.
    """

    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_length: Positive

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be over "
                f"low_freq_factor ({self.low_freq_factor})"
            )


@dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA-shaped transformer: RMSNorm, RoPE, grouped queries, SwiGLU.

    Linears have no biases, except those of queries, keys and values in Qwen2.

    Attributes:
        vocab_size: V, number of token ids.
        dim: D, width of the residual stream.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: G, key and value heads; divides H.
        head_dim: K, size of a head; need not be D / H.
        ffn_dim: F, width of the feed-forward layer.
        max_length: maximum sequence length in tokens; at most `sliding_window`.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how the frequencies are scaled for long sequences; None for no scaling.
        norm_eps: epsilon of RMSNorm.
        tie_embeddings: the LM head is the transposed token embedding.
        family: the kind of model; it decides on `qkv_bias` and `qk_norm`.
        sliding_window: number of tokens that each token sees, itself included; None for all.
            Attention here has no window: sequences up to `max_length` do not need one.
    """

    vocab_size: Positive
    dim: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    ffn_dim: Positive
    max_length: Positive
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: LinearScaling | Llama3Scaling | None = None
    norm_eps: NotNegative = 1e-5
    tie_embeddings: bool = True
    # Not in the representation, which is part of the fingerprints in exported adapters.
    family: Family = field(default="llama", repr=False)
    sliding_window: Positive | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates pairs")
        if self.sliding_window is not None and self.max_length > self.sliding_window:
            raise ValueError(
                f"max_length ({self.max_length}) must be at most sliding_window "
                f"({self.sliding_window})"
            )

    @property
    def qkv_bias(self) -> bool:
        """Whether the linears of queries, keys and values have biases."""
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether every head of the queries and keys goes through an RMSNorm before RoPE."""
        return self.family == "qwen3"


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): y = x W + (alpha / rank) · dropout(x) A B.

    Attributes:
        rank: r, inner size of A [in, r] and B [r, out].
        alpha: scale of the update, divided by the rank.
        dropout: share of an adapter's inputs set to zero in training.
        targets: linears that receive an adapter.
    """

    rank: Annotated[int, Field(ge=1, le=65_536)] = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = TARGETS
