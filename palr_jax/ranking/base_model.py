"""The tokenizer and the LLaMA of a ranker before it is tuned."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from palr_jax.config import Config, RankerConfig
from palr_jax.data.catalog import Catalog
from palr_jax.decoding.candidate_head import CandidateHead, RankingLlama
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.templates import item_text, profile_text, template
from palr_jax.io.paths import path_of
from palr_jax.llm.axes import check_divides
from palr_jax.llm.checkpoints.loading import fit_tokenizer, load, shape_of_weights, tokenizer_of
from palr_jax.llm.checkpoints.weights import blank, draw
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.lora import Scale
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer, load_tokenizer
from palr_jax.parallel.sharding import Shards


def make_tokenizer(config: RankerConfig, instruct: InstructConfig, catalog: Catalog) -> Tokenizer:
    """The tokenizer of a ranker: the given one, that of its weights, or one made for the catalog.

    Raises:
        UserError: the named tokenizer is missing, cannot be read or is of other weights, or the
            weights have none.
    """
    if config.tokenizer:
        tokenizer = load_tokenizer(path_of(config.tokenizer))
        if config.weights:
            shape = shape_of_weights(path_of(config.weights))
            tokenizer = fit_tokenizer(shape, tokenizer, f"{config.weights}, {config.tokenizer}")
        return tokenizer
    if config.weights:
        own = tokenizer_of(path_of(config.weights))
        if own is None:
            raise UserError(f"{config.weights} has no tokenizer: name one in ranker.tokenizer")
        return own
    kinds = sorted({name.lower() for row in catalog.categories for name in row})
    parts = template(instruct)
    texts = [
        *(
            item_text(instruct, *item)
            for item in zip(catalog.item_ids, catalog.titles, strict=True)
        ),
        *(profile_text(instruct, (kind,)) for kind in kinds),
        parts.recommend,
        parts.recommend_retrieval,
        parts.history,
        parts.candidates,
        parts.answer,
    ]
    lines = [text.strip() for text in texts]
    return train_tokenizer([line for line in lines if line], config.size.vocab_size)


def scratch_shape(config: RankerConfig, vocab_size: int, max_length: int) -> LlamaConfig:
    """The shape of a ranker that is trained from random weights."""
    size = config.size
    return LlamaConfig(
        vocab_size=vocab_size,
        dim=size.dim,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        num_kv_heads=size.num_kv_heads,
        head_dim=size.dim // size.num_heads,
        ffn_dim=size.ffn_dim,
        max_length=max_length,
    )


def make_model(
    config: RankerConfig,
    vocab_size: int,
    max_length: int,
    seed: int,
    shards: Shards,
    drawn: bool = True,
) -> Llama:
    """The LLaMA before fine-tuning: imported weights, or a small one drawn from `seed`.

    Every parameter is made in its shards; no host ever holds a whole one.

    Args:
        config: of the ranker.
        vocab_size: tokens of the tokenizer.
        max_length: tokens of a row, `finetune.length`.
        seed: of what is drawn.
        shards: the mesh.
        drawn: False for a small model of which a checkpoint has every parameter: all are 0.

    Raises:
        UserError: the weights cannot be read, do not fit the tokenizer or the prompts, or do not
            divide over the mesh; qwix is not installed and needed.
    """
    if not config.weights:
        shape = scratch_shape(config, vocab_size, max_length)
        check_divides(shape, shards)
        if drawn or config.lora is not None:
            return draw(shape, config.lora, seed, shards)
        return blank(shape, shards)
    check_divides(shape_of_weights(path_of(config.weights)), shards, config.quantize)
    model, _ = load(
        config.weights, config.dtype, config.lora, seed, shards=shards, quantization=config.quantize
    )
    if model.config.vocab_size < vocab_size:
        raise UserError(
            f"{config.weights} knows {model.config.vocab_size} tokens, the tokenizer {vocab_size}: "
            "name the tokenizer that belongs to the weights in ranker.tokenizer"
        )
    if model.config.max_length < max_length:
        why = " (its sliding_window)" if model.config.sliding_window else ""
        raise UserError(
            f"{config.weights} reads {model.config.max_length} tokens at most{why}: "
            f"lower finetune.length ({max_length}), and instruct.length with it"
        )
    return model


def with_head(model: Llama, config: Config, vectors: Sequence[np.ndarray], shards: Shards) -> Llama:
    """The model with the candidate head that a config asks for, whole on every device.

    Args:
        model: of PALR_v2.
        config: of the run.
        vectors: item vectors, one array for every kind in `ranker.item_embeddings`.
        shards: the mesh.
    """
    has_prior = config.ranker.prior == "retriever"
    reads_titles = config.ranker.reads == "titles"
    if not (has_prior or vectors or reads_titles):
        return model
    head = CandidateHead(model.config.dim, vectors, has_prior, reads_titles)
    nnx.update(head, jax.device_put(nnx.state(head), shards.of()))
    return RankingLlama(model, head)


def count_parameters(model: Llama) -> int:
    """All parameters, adapters included."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(Scale))))
