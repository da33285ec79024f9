"""A `config.json` of Hugging Face ↔ LlamaConfig.

Newer files keep the rotary settings in `rope_parameters`, older ones in `rope_theta` and
`rope_scaling`; both are read, the older keys are written, which every version of transformers
understands.
"""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from palr_jax.errors import UserError
from palr_jax.files import read_json
from palr_jax.llm.config import LinearScaling, Llama3Scaling, LlamaConfig

# What transformers takes for a Mistral whose config does not say.
_MISTRAL_WINDOW = 4096
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read_config(path: Path) -> LlamaConfig:
    """Reads a `config.json`.

    Raises:
        UserError: it is missing or damaged, lacks a key, or asks for something that Llama does
            not do (biases, a sliding window, experts, another scaling of RoPE, another
            activation or architecture).
    """
    if not path.exists():
        raise UserError(f"{path} is missing: name a folder with config.json and safetensors")
    hf = read_json(path)
    if not isinstance(hf, dict):
        raise UserError(f"{path} holds no config: copy it again")
    return from_hf(hf, str(path))


def from_hf(hf: dict[str, Any], where: str) -> LlamaConfig:
    """The shape that the content of a `config.json` describes; `where` stands in errors.

    Raises:
        UserError: as `read_config`.
    """
    _refuse_unsupported(hf, where)
    try:
        rope_theta, rope_scaling = _rope(hf, where)
        return TypeAdapter(LlamaConfig).validate_python(
            {
                "vocab_size": hf["vocab_size"],
                "dim": hf["hidden_size"],
                "num_layers": hf["num_hidden_layers"],
                "num_heads": hf["num_attention_heads"],
                "num_kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
                "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
                "ffn_dim": hf["intermediate_size"],
                "max_length": hf["max_position_embeddings"],
                "rope_theta": rope_theta,
                "rope_scaling": rope_scaling,
                "norm_eps": hf["rms_norm_eps"],
                "tie_embeddings": hf.get("tie_word_embeddings", False),
            }
        )
    except KeyError as error:
        raise UserError(f"{where} lacks the key {error}: is it a LLaMA checkpoint?") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {key}{': ' if key else ''}{message}") from None
    except (TypeError, ZeroDivisionError, ValueError) as error:
        raise UserError(f"{where} holds a value of the wrong kind: {error}") from None


def to_hf(config: LlamaConfig, begin_ids: tuple[int, ...] = (), eos_id: int | None = None) -> dict:
    """The content of a `config.json` that transformers reads as the same model."""
    scaling: dict[str, Any] | None = None
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
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": begin_ids[0] if begin_ids else None,
        "eos_token_id": eos_id,
    }


def _refuse_unsupported(hf: dict[str, Any], where: str) -> None:
    kind = hf.get("model_type")
    architectures = hf.get("architectures") or [_ARCHITECTURES.get(str(kind))]
    unsupported = {
        f"model_type {kind!r}": kind not in _ARCHITECTURES,
        f"architecture {architectures[0]!r}": architectures[0] not in _ARCHITECTURES.values(),
        "attention_bias": bool(hf.get("attention_bias")),
        "mlp_bias": bool(hf.get("mlp_bias")),
        f"hidden_act {hf.get('hidden_act')!r}": hf.get("hidden_act", "silu")
        not in ("silu", "swish"),
        "quantization_config": hf.get("quantization_config") is not None,
        "sliding_window": _has_window(hf),
        "partial_rotary_factor": hf.get("partial_rotary_factor", 1.0) != 1.0,
        **{f"{key} (mixture of experts)": bool(hf.get(key)) for key in _EXPERTS},
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(f"{where}: {feature} is not supported; use a plain LLaMA checkpoint")


def _has_window(hf: dict[str, Any]) -> bool:
    layers = hf.get("layer_types") or []
    if any(kind != "full_attention" for kind in layers):
        return True
    if "sliding_window" in hf:
        return hf["sliding_window"] is not None and hf.get("use_sliding_window", True)
    # A Mistral that does not say has a window, which acts only on sequences longer than it.
    return hf.get("model_type") == "mistral" and hf.get("max_position_embeddings", 0) > (
        _MISTRAL_WINDOW
    )


def _rope(hf: dict[str, Any], where: str) -> tuple[float, LinearScaling | Llama3Scaling | None]:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(rope["factor"])
    if kind == "llama3":
        return theta, Llama3Scaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_length=rope["original_max_position_embeddings"],
        )
    raise UserError(f"{where}: rope type {kind!r} is not supported; default, linear and llama3 are")
