"""The `ranker` section of a config: which LLaMA ranks, and what it reads."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from palr_jax.llm.config import LoRAConfig, Quantization

_MOST_PARAMETERS = 10**12
# Where item vectors come from.
ItemVectorKind = Literal["retriever", "words", "language_model"]
# The two rankers of the paper: tuned on Recommend alone, and on both tasks.
Variant = Literal["PALR_v1", "PALR_v2"]


@dataclass(frozen=True)
class SizeConfig:
    """The shape of a ranker that is trained from scratch; unused if `ranker.weights` is set.

    Attributes:
        dim: width of the residual stream.
        num_layers: number of layers.
        num_heads: query heads, of size dim / num_heads each.
        num_kv_heads: key and value heads; divides num_heads.
        ffn_dim: width of the feed-forward layers.
        vocab_size: vocabulary of the tokenizer that is trained on the catalog.
    """

    dim: Annotated[int, Field(ge=1, le=65_536)] = 128
    num_layers: Annotated[int, Field(ge=1, le=1_024)] = 4
    num_heads: Annotated[int, Field(ge=1, le=1_024)] = 4
    num_kv_heads: Annotated[int, Field(ge=1, le=1_024)] = 2
    ffn_dim: Annotated[int, Field(ge=1, le=262_144)] = 352
    vocab_size: Annotated[int, Field(ge=512, le=1_000_000)] = 4096

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"dim ({self.dim}) must be an even multiple of num_heads ({self.num_heads})"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        layer = 4 * self.dim**2 + 3 * self.dim * self.ffn_dim
        parameters = self.num_layers * layer + self.vocab_size * self.dim
        if parameters > _MOST_PARAMETERS:
            raise ValueError(
                f"about {parameters:.1e} parameters, of at most {_MOST_PARAMETERS:.0e}: lower dim, "
                "num_layers or ffn_dim"
            )


@dataclass(frozen=True)
class RankerConfig:
    """Which LLaMA ranks the candidates.

    Attributes:
        weights: pretrained weights: a Hugging Face folder, a GGUF file or the output of
            `palr import-weights`; null trains a small model from scratch.
        dtype: type of the frozen weights under adapters; trained parameters are always float32.
        quantize: how the frozen weights of attention and feed-forward are stored: none as `dtype`,
            int8 in 8 bits or nf4 in 4 bits (QLoRA), with one scale for 64 weights. Products take
            them in `dtype`. Needs `pip install 'palr-jax[quantize]'`.
        tokenizer: a SentencePiece `tokenizer.model`, a Hugging Face `tokenizer.json`, or a folder
            that holds one of them; null takes the tokenizer of `weights`.
        size: the shape of the small model.
        lora: adapters that are trained while the weights stay frozen; null trains all weights.
        variants: rankers to tune: PALR_v1 learns the task Recommend alone, PALR_v2 both tasks.
        retrieval_share: share of Recommend_Retrieval examples in the data of PALR_v2.
        prior: retriever adds the retriever's probabilities of the candidates to the logits at
            every choice of PALR_v2's trie, in training and inference, so that the LLaMA learns
            only a correction; none leaves them out.
        item_embeddings: item vectors that PALR_v2 receives after each title and in the scores of
            candidates, from the retriever, from the words of titles, or from a language model that
            reads the titles.
        title_weights: language model of item_embeddings, in any form that `weights` takes; null
            takes `weights`.
        reads: what PALR_v2 reads of the candidates: choices, the few tokens where their titles
            differ; or titles, the whole text of each one after the history, whose last state is
            mapped to a score.
    """

    weights: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Quantization = "none"
    tokenizer: str | None = None
    size: SizeConfig = field(default_factory=SizeConfig)
    lora: LoRAConfig | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = ("PALR_v1", "PALR_v2")
    retrieval_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    prior: Literal["none", "retriever"] = "none"
    item_embeddings: tuple[ItemVectorKind, ...] = ()
    title_weights: str | None = None
    reads: Literal["choices", "titles"] = "choices"

    def __post_init__(self) -> None:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants names one twice ({', '.join(self.variants)})")
        if len(set(self.item_embeddings)) < len(self.item_embeddings):
            raise ValueError(f"item_embeddings names one twice ({', '.join(self.item_embeddings)})")
        if "language_model" in self.item_embeddings and not (self.title_weights or self.weights):
            raise ValueError("item_embeddings language_model needs one: name it in title_weights")
        if self.dtype != "float32" and not (self.weights and self.lora):
            raise ValueError(
                f"dtype {self.dtype} is for weights that stay frozen: set weights and lora"
            )
        if self.quantize != "none" and not (self.weights and self.lora):
            raise ValueError(
                f"quantize {self.quantize} is for weights that stay frozen: set weights and lora"
            )

    @property
    def has_head(self) -> bool:
        """Whether PALR_v2 scores candidates with more than the LLaMA's logits."""
        return self.prior == "retriever" or len(self.item_embeddings) > 0 or self.reads == "titles"
