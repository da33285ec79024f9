"""The shape of a LLaMA and of its LoRA adapters."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA-shaped transformer: RMSNorm, RoPE, grouped queries, SwiGLU, no biases.

    Attributes:
        vocab_size: V, number of token ids.
        dim: D, width of the residual stream.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: G, key and value heads; divides H.
        head_dim: K, size of one head; independent of D / H.
        ffn_dim: F, width of the feed-forward layer.
        max_length: longest sequence in tokens.
        rope_theta: base of the rotary frequencies.
        norm_eps: epsilon of RMSNorm.
        tie_embeddings: the LM head is the transposed token embedding.
    """

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    max_length: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates pairs")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): y = x W + (alpha / rank) · x A B.

    Attributes:
        rank: r, inner size of A [in, r] and B [r, out].
        alpha: the update is scaled by alpha / rank.
        targets: which linears get an adapter.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: tuple[Target, ...] = TARGETS
