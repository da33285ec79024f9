"""Conversion between a Hugging Face `config.json` and a LlamaConfig.

`model_type` is the family: llama, mistral, qwen2 (also of Qwen 2.5) or qwen3.

Newer files have the rotary settings in `rope_parameters`, older ones in `rope_theta` and
`rope_scaling`. Both are read; the older keys are written, as every version of transformers supports
them.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import (
    BaseModel,
    StrictBool,
    StrictFloat,
    StrictStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.small_files import complaint, read_object, validated
from palr_jax.llm.config import (
    Family,
    LinearScaling,
    Llama3Scaling,
    LlamaConfig,
    NotNegative,
    Positive,
    PositiveFloat,
)

# The default of transformers for a Mistral config without a window.
_MISTRAL_WINDOW = 4096
_ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ROPE_KINDS = ("default", "linear", "llama3")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")

_Value = TypeVar("_Value")


class _Rope(BaseModel):
    """The nested settings of RoPE."""

    rope_theta: PositiveFloat | None = None
    rope_type: StrictStr | None = None
    type: StrictStr | None = None
    partial_rotary_factor: StrictFloat | None = None
    factor: PositiveFloat | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    original_max_position_embeddings: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_all_layers(cls, value: object) -> object:
        if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            raise ValueError("different settings per layer are not supported")
        return value


class _Content(BaseModel):
    """The keys of a `config.json` that affect the computation."""

    model_type: Family
    architectures: list[StrictStr] | None = None
    attention_bias: StrictBool | None = None
    mlp_bias: StrictBool | None = None
    hidden_act: StrictStr = "silu"
    quantization_config: object = None
    sliding_window: Positive | None = None
    use_sliding_window: StrictBool | None = None
    layer_types: list[StrictStr] | None = None
    partial_rotary_factor: StrictFloat | None = None
    num_local_experts: object = None
    num_experts: object = None
    n_routed_experts: object = None
    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    intermediate_size: Positive
    max_position_embeddings: Positive
    rms_norm_eps: NotNegative
    rope_theta: PositiveFloat | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    tie_word_embeddings: StrictBool | None = None


def read_config(path: Path) -> LlamaConfig:
    """Reads a `config.json`.

    Raises:
        UserError: it is missing or damaged, lacks a key, has a value of the wrong type, or needs a
            feature that Llama does not support (biases but Qwen2's, a sliding window but
            Mistral's, experts, another RoPE scaling, another activation or architecture).
    """
    if not path.exists():
        raise UserError(f"{path} is missing: name a folder with config.json and safetensors")
    return from_hf(read_object(path), str(path))


def from_hf(hf: dict[str, object], where: str) -> LlamaConfig:
    """The shape that the content of a `config.json` describes; `where` names it in errors.

    Raises:
        UserError: as `read_config`.
    """
    _refuse_other_models(hf, where)
    content = validated(_Content, hf, where)
    _refuse_unsupported(content, where)
    heads = content.num_attention_heads
    rope_theta, rope_scaling = _rope(content, where)
    longest, window = content.max_position_embeddings, _window(content)
    shape = {
        "vocab_size": content.vocab_size,
        "dim": content.hidden_size,
        "num_layers": content.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": content.num_key_value_heads or heads,
        "head_dim": content.head_dim or content.hidden_size // heads,
        "ffn_dim": content.intermediate_size,
        "max_length": min(longest, window or longest),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "norm_eps": content.rms_norm_eps,
        "tie_embeddings": bool(content.tie_word_embeddings),
        "family": content.model_type,
        "sliding_window": window,
    }
    try:
        return TypeAdapter(LlamaConfig).validate_python(shape)
    except ValidationError as error:
        raise UserError(complaint(error, where)) from None


def to_hf(
    config: LlamaConfig, begin_ids: tuple[int, ...] = (), eos_id: int | None = None
) -> dict[str, object]:
    """The content of a `config.json` that transformers reads as the same model."""
    scaling: dict[str, object] | None = None
    match config.rope_scaling:
        case LinearScaling(factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, length):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        **_features(config),
        "bos_token_id": begin_ids[0] if begin_ids else None,
        "eos_token_id": eos_id,
    }


def _features(config: LlamaConfig) -> dict[str, object]:
    """The keys that only some families have."""
    match config.family:
        case "llama":
            return {"attention_bias": False, "mlp_bias": False}
        case "mistral":
            return {"sliding_window": config.sliding_window}
        case "qwen2":
            return {"use_sliding_window": False}
        case "qwen3":
            return {"use_sliding_window": False, "attention_bias": False}


def _refuse_other_models(hf: dict[str, object], where: str) -> None:
    """Refuses other kinds of models first, as their configs may have different keys."""
    kind, architectures = hf.get("model_type"), hf.get("architectures")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        raise _unsupported(f"model_type {kind!r}", where)
    known = [*_ARCHITECTURES.values()]
    if architectures and (not isinstance(architectures, list) or architectures[0] not in known):
        first = architectures[0] if isinstance(architectures, list) else architectures
        raise _unsupported(f"architecture {first!r}", where)


def _refuse_unsupported(content: _Content, where: str) -> None:
    features = {
        # Qwen2 has its biases with any value of this key.
        "attention_bias": content.attention_bias and content.model_type != "qwen2",
        "mlp_bias": content.mlp_bias,
        f"hidden_act {content.hidden_act!r}": content.hidden_act not in ("silu", "swish"),
        "quantization_config": content.quantization_config is not None,
        "sliding_window": _has_other_window(content),
        "partial_rotary_factor": content.partial_rotary_factor not in (None, 1.0),
        **{f"{key} (mixture of experts)": getattr(content, key) for key in _EXPERTS},
    }
    for feature, present in features.items():
        if present:
            raise _unsupported(feature, where)


def _unsupported(feature: str, where: str) -> UserError:
    return UserError(
        f"{where}: {feature} is not supported; use a plain LLaMA, Mistral, Qwen2 or Qwen3"
    )


def _has_other_window(content: _Content) -> bool:
    """Whether a layer has a window, except for that of all layers of a Mistral."""
    if any(kind != "full_attention" for kind in content.layer_types or ()):
        return True
    if content.model_type == "mistral" or content.sliding_window is None:
        return False
    if content.model_type == "llama":
        return content.use_sliding_window is not False
    return bool(content.use_sliding_window)


def _window(content: _Content) -> int | None:
    """The sliding window of all layers; None if it has more tokens than any sequence."""
    if content.model_type != "mistral":
        return None
    given = "sliding_window" in content.model_fields_set
    window = content.sliding_window if given else _MISTRAL_WINDOW
    return window if window and window <= content.max_position_embeddings else None


def _rope(content: _Content, where: str) -> tuple[float, LinearScaling | Llama3Scaling | None]:
    named = [
        rope
        for rope in (content.rope_parameters, content.rope_scaling)
        if rope and rope.model_fields_set
    ]
    for rope in named:
        if _kind(rope) not in _ROPE_KINDS:
            raise UserError(
                f"{where}: rope type {_kind(rope)!r} is not supported; default, linear and llama3 "
                "are"
            )
    _refuse_contradiction(content, named, where)
    rope = named[0] if named else _Rope()
    theta = rope.rope_theta or content.rope_theta or 10_000.0
    kind = _kind(rope)
    if rope.partial_rotary_factor not in (None, 1.0):
        raise UserError(f"{where}: partial_rotary_factor is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(_given(rope.factor, "factor", where))
    try:
        return theta, Llama3Scaling(
            factor=_given(rope.factor, "factor", where),
            low_freq_factor=_given(rope.low_freq_factor, "low_freq_factor", where),
            high_freq_factor=_given(rope.high_freq_factor, "high_freq_factor", where),
            original_max_length=_given(
                rope.original_max_position_embeddings, "original_max_position_embeddings", where
            ),
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _kind(rope: _Rope) -> str:
    return rope.rope_type or rope.type or "default"


def _refuse_contradiction(content: _Content, named: list[_Rope], where: str) -> None:
    """Refuses a config of which transformers reads other rotary settings by its version."""
    thetas = {content.rope_theta, *(rope.rope_theta for rope in named)} - {None}
    if len(thetas) > 1:
        raise UserError(
            f"{where} gives rope_theta as {' and as '.join(sorted(map(str, thetas)))}: "
            "keep the one that the model was trained with"
        )
    apart = {"rope_theta", "rope_type", "type"}
    settings = [(_kind(rope), rope.model_dump(exclude=apart)) for rope in named]
    if any(one != settings[0] for one in settings):
        raise UserError(
            f"{where}: rope_parameters and rope_scaling differ: keep the one that the model was "
            "trained with"
        )


def _given(value: _Value | None, key: str, where: str) -> _Value:
    if value is None:
        raise UserError(f"{where} lacks the key {key!r}: copy it again")
    return value
