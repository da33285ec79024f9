"""Tiny random checkpoints of every variant of a model, in the format of other tools."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

FIXTURES = Path(__file__).parent / "fixtures"
_COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
}
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
_MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
_QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"}
_QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}

# The content of config.json as in each original model, with small sizes.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama1": _COMMON | _LLAMA | {"rms_norm_eps": 1e-06},
    "llama2": _COMMON
    | _LLAMA
    | {"num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_scaling": None,
       "tie_word_embeddings": False, "pretraining_tp": 1},
    "llama3": _COMMON
    | _LLAMA
    | {"num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
       "rope_scaling": _LLAMA3, "attention_bias": False, "mlp_bias": False},
    "llama3-new-keys": _COMMON
    | _LLAMA
    | {"num_key_value_heads": 1, "rms_norm_eps": 1e-05, "head_dim": 8,
       "rope_parameters": {**_LLAMA3, "rope_theta": 500000.0}, "tie_word_embeddings": True},
    "linear": _COMMON
    | _LLAMA
    | {"rms_norm_eps": 1e-06, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "mistral": _COMMON
    | _MISTRAL
    | {"num_key_value_heads": 2, "rms_norm_eps": 1e-05, "head_dim": 6, "rope_theta": 1000000.0,
       "sliding_window": None, "tie_word_embeddings": False},
    "smollm2": _COMMON
    | _LLAMA
    | {"hidden_size": 18, "num_attention_heads": 3, "num_key_value_heads": 1,
       "rms_norm_eps": 1e-05, "rope_theta": 100000, "tie_word_embeddings": True,
       "rope_interleaved": False},
    "llama3.2": _COMMON
    | _LLAMA
    | {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
       "rope_scaling": {**_LLAMA3, "factor": 32.0}, "tie_word_embeddings": True,
       "attention_bias": False, "mlp_bias": False},
    "mistral-window": _COMMON
    | _MISTRAL
    | {"num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
       "sliding_window": 100, "tie_word_embeddings": False},
    "qwen2": _COMMON
    | _QWEN2
    | {"num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
       "use_sliding_window": False, "sliding_window": 96, "max_window_layers": 28,
       "tie_word_embeddings": False},
    "qwen2-tied": _COMMON
    | _QWEN2
    | {"num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
       "use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": True},
    "qwen3": _COMMON
    | _QWEN3
    | {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
       "rope_scaling": None, "attention_bias": False, "use_sliding_window": False,
       "sliding_window": None, "max_window_layers": 36, "tie_word_embeddings": True},
    "large-eps": _COMMON | _LLAMA | {"num_key_value_heads": 2, "rms_norm_eps": 0.1},
}  # fmt: skip

# Long enough to reveal a wrong frequency.
TOKENS = np.random.default_rng(7).integers(0, 64, (2, 100))
# The positions whose logits are in the fixtures.
KEPT = [0, 1, 17, 63, 99]
LORA: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 12.0,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "down_proj"],
}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, float32, by its name."""
    dim, ffn = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or dim // heads
    kv = size * (config.get("num_key_value_heads") or heads)
    table = (config["vocab_size"], dim)
    shapes = {"model.embed_tokens.weight": table, "model.norm.weight": (dim,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = table
    more = {
        "qwen2": {
            "self_attn.q_proj.bias": (heads * size,), "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
        },
        "qwen3": {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)},
    }.get(config.get("model_type", "llama"), {})  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (dim,), "post_attention_layernorm": (dim,),
            "self_attn.q_proj": (heads * size, dim), "self_attn.k_proj": (kv, dim),
            "self_attn.v_proj": (kv, dim), "self_attn.o_proj": (dim, heads * size),
            "mlp.gate_proj": (ffn, dim), "mlp.up_proj": (ffn, dim), "mlp.down_proj": (dim, ffn),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
        for name, shape in more.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    rng = np.random.default_rng(seed)
    values = {}
    for name in sorted(shapes):
        drawn = rng.normal(size=shapes[name])
        drawn = 1 + 0.2 * drawn if "norm" in name else drawn * shapes[name][-1] ** -0.5
        values[name] = drawn.astype(np.float32)
    return values


def write_checkpoint(
    folder: Path, config: dict[str, Any], shards: int = 1, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Writes a Hugging Face folder and returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    values = {name: value.astype(dtype) for name, value in tensors(config).items()}
    if shards == 1:
        save_file(values, folder / "model.safetensors", {"format": "pt"})
        return values
    where: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(values)[shard::shards]
        save_file({name: values[name] for name in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return values


def adapter_tensors(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """The tensors of a PEFT adapter with the settings `LORA`, B not zero."""
    dim, ffn, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    size = config.get("head_dim") or dim // heads
    rng = np.random.default_rng(seed)
    values = {}
    for layer in range(config["num_hidden_layers"]):
        for name, ins, outs in (
            ("self_attn.q_proj", dim, heads * size),
            ("mlp.down_proj", ffn, dim),
        ):
            stem = f"base_model.model.model.layers.{layer}.{name}"
            for letter, shape in (("A", (LORA["r"], ins)), ("B", (outs, LORA["r"]))):
                drawn = rng.normal(size=shape) * 0.2
                values[f"{stem}.lora_{letter}.weight"] = drawn.astype(np.float32)
    return values


def write_adapter(folder: Path, config: dict[str, Any], base: Path) -> dict[str, np.ndarray]:
    """Writes a PEFT adapter folder and returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", **LORA}
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(base)})
    )
    values = adapter_tensors(config)
    save_file(values, folder / "adapter_model.safetensors", {"format": "pt"})
    return values


BF16 = ml_dtypes.bfloat16
