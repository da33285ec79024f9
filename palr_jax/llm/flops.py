"""Floating-point operations of a train step and of ranking, by formula.

A multiplication and an addition are two operations. Only matrix products count; norms, softmax,
RoPE and the optimizer are a percent or less. XLA counts the body of a loop once, so its cost
analysis cannot be used.

Model FLOPs are those of the mathematical definition (Chowdhery et al. 2022, appendix B), without
recomputation: MFU divides them by the chip's peak. Executed FLOPs include rematerialisation.

Pairs are the (query, key) pairs of attention: a causal sequence of n tokens has n (n + 1) / 2.
"""

from collections.abc import Iterable

from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat, Target

# Products of a linear in a train step: forward, gradient of the input, gradient of the weights.
_FROZEN, _TRAINED = 4, 6
# Attention is two products forward and four backward, none of them with a parameter. No T x T array
# is stored: the backward pass recomputes the scores, the first of the two.
_ATTENTION_FORWARD, _ATTENTION_BACKWARD, _SCORES = 4, 8, 2


def linear_shapes(config: LlamaConfig) -> dict[Target, tuple[int, int]]:
    """Inputs and outputs of the seven linears of a layer."""
    D, F = config.dim, config.ffn_dim
    HK, GK = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q": (D, HK),
        "k": (D, GK),
        "v": (D, GK),
        "o": (HK, D),
        "gate": (D, F),
        "up": (D, F),
        "down": (F, D),
    }


def linear_parameters(config: LlamaConfig) -> int:
    """Number of parameters of the linears of all layers, without adapters and LM head."""
    shapes = linear_shapes(config).values()
    return config.num_layers * sum(inputs * outputs for inputs, outputs in shapes)


def adapter_parameters(config: LlamaConfig, lora: LoRAConfig) -> int:
    """Number of parameters of the adapters of all layers."""
    shapes = linear_shapes(config)
    return config.num_layers * lora.rank * sum(sum(shapes[target]) for target in lora.targets)


def causal_pairs(lengths: Iterable[int]) -> int:
    """Number of (query, key) pairs of causal sequences of these lengths."""
    return sum(length * (length + 1) // 2 for length in lengths)


def train_flops(
    config: LlamaConfig, lora: LoRAConfig | None, tokens: float, label_tokens: float, pairs: float
) -> float:
    """Model FLOPs of a train step: forward, and backward through frozen and trained weights.

    Args:
        config: the shape of the model.
        lora: adapters on frozen weights; None if all weights are trained.
        tokens: number of tokens of the batch.
        label_tokens: number of tokens that the LM head is computed for.
        pairs: number of (query, key) pairs of the batch.
    """
    base = _TRAINED if lora is None else _FROZEN
    adapters = 0 if lora is None else _TRAINED * adapter_parameters(config, lora)
    attention = _ATTENTION_FORWARD + _ATTENTION_BACKWARD
    return (
        tokens * (base * linear_parameters(config) + adapters)
        + label_tokens * base * config.vocab_size * config.dim
        + pairs * attention * _attention_width(config)
    )


def executed_train_flops(
    config: LlamaConfig,
    lora: LoRAConfig | None,
    remat: Remat,
    tokens: float,
    label_tokens: float,
    pairs: float,
) -> float:
    """FLOPs that the hardware executes in a train step: `train_flops` plus recomputation."""
    again = pairs * _SCORES * _attention_width(config)
    if remat == "full":
        again += pairs * _ATTENTION_FORWARD * _attention_width(config)
        adapters = 0 if lora is None else adapter_parameters(config, lora)
        again += tokens * 2 * (linear_parameters(config) + adapters)
    return train_flops(config, lora, tokens, label_tokens, pairs) + again


def rank_flops(
    config: LlamaConfig, lora: LoRAConfig | None, tokens: float, edges: float, pairs: float
) -> float:
    """FLOPs of ranking in one forward pass.

    Args:
        config: the shape of the model.
        lora: adapters that are not merged into the weights.
        tokens: number of prompt tokens and fed trie nodes.
        edges: number of children of trie nodes that branch; each costs one row of the LM head.
        pairs: as for `train_flops`.
    """
    adapters = 0 if lora is None else adapter_parameters(config, lora)
    return (
        tokens * 2 * (linear_parameters(config) + adapters)
        + edges * 2 * config.dim
        + pairs * _ATTENTION_FORWARD * _attention_width(config)
    )


def _attention_width(config: LlamaConfig) -> int:
    return config.num_layers * config.num_heads * config.head_dim
