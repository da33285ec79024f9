"""LLaMA weights from a Hugging Face folder (`config.json` and safetensors)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from palr_jax.errors import UserError
from palr_jax.files import read_json
from palr_jax.llm.config import LlamaConfig, LoRAConfig
from palr_jax.llm.llama import Llama

# Our path of a parameter within a layer → the name in a checkpoint, and whether it is transposed
# there (torch keeps linears as [out, in]).
_LAYER = {
    ("attention_norm", "weight_D"): ("input_layernorm.weight", False),
    ("q", "kernel_IO"): ("self_attn.q_proj.weight", True),
    ("k", "kernel_IO"): ("self_attn.k_proj.weight", True),
    ("v", "kernel_IO"): ("self_attn.v_proj.weight", True),
    ("o", "kernel_IO"): ("self_attn.o_proj.weight", True),
    ("ffn_norm", "weight_D"): ("post_attention_layernorm.weight", False),
    ("gate", "kernel_IO"): ("mlp.gate_proj.weight", True),
    ("up", "kernel_IO"): ("mlp.up_proj.weight", True),
    ("down", "kernel_IO"): ("mlp.down_proj.weight", True),
}
_TOP = {
    ("embedding_VD",): "model.embed_tokens.weight",
    ("norm", "weight_D"): "model.norm.weight",
    ("head_VD",): "lm_head.weight",
}


def read_config(folder: Path) -> LlamaConfig:
    """Reads `config.json`.

    Raises:
        UserError: a key is missing, or the model has a feature that Llama does not (biases,
            sliding window, scaled RoPE, another activation or architecture).
    """
    path = folder / "config.json"
    hf = read_json(path)
    _refuse_unsupported(hf, path)
    rope = hf.get("rope_parameters") or {}
    try:
        return LlamaConfig(
            vocab_size=hf["vocab_size"],
            dim=hf["hidden_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=hf["num_attention_heads"],
            num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
            head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
            ffn_dim=hf["intermediate_size"],
            max_length=hf["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0),
            norm_eps=hf["rms_norm_eps"],
            tie_embeddings=hf.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}: is it a LLaMA checkpoint?") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _refuse_unsupported(hf: dict[str, Any], path: Path) -> None:
    kind = hf.get("model_type")
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    unsupported = {
        f"model_type {kind!r}": kind not in ("llama", "mistral"),
        "attention_bias": bool(hf.get("attention_bias")),
        "mlp_bias": bool(hf.get("mlp_bias")),
        "sliding_window": kind == "mistral" and hf.get("sliding_window") is not None,
        f"rope type {rope_type!r}": rope_type != "default",
        f"hidden_act {hf.get('hidden_act')!r}": hf.get("hidden_act", "silu") != "silu",
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(f"{path}: {feature} is not supported; use a plain LLaMA checkpoint")


def load(folder: Path, lora: LoRAConfig | None = None, seed: int = 0) -> Llama:
    """Loads the weights of a folder into a float32 Llama; adapters start fresh from `seed`.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing or of another shape.
    """
    config = read_config(folder)
    model = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(params=0), lora))
    graph, adapters, base = nnx.split(model, nnx.LoRAParam, ...)
    tensors = _read_tensors(folder)
    loaded = [
        (path, leaf.replace(_assemble(path, leaf, tensors, folder)))
        for path, leaf in nnx.to_flat_state(base)
    ]
    if lora:
        adapters = nnx.split(Llama(config, nnx.Rngs(params=seed), lora), nnx.LoRAParam, ...)[1]
    return nnx.merge(graph, adapters, nnx.from_flat_state(loaded))


def _assemble(
    path: tuple[str, ...], leaf: Any, tensors: dict[str, np.ndarray], folder: Path
) -> jax.Array:
    """The array of one parameter; layers are stacked on a leading axis."""
    if path[0] == "layers":
        name, transposed = _LAYER[path[1], path[2]]
        parts = [
            _take(tensors, f"model.layers.{index}.{name}", folder) for index in range(leaf.shape[0])
        ]
        value = np.stack([part.T if transposed else part for part in parts])
    else:
        name, value = _TOP[path], _take(tensors, _TOP[path], folder)
    if value.shape != leaf.shape:
        raise UserError(
            f"{folder}: tensor {name} has shape {value.shape}, config.json asks for {leaf.shape}"
        )
    return jnp.asarray(value, jnp.float32)


def _take(tensors: dict[str, np.ndarray], name: str, folder: Path) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{folder}: tensor {name} is missing from the safetensors files")
    return tensors[name]


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file: name a Hugging Face model folder")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            with safe_open(file, framework="flax") as opened:  # NumPy alone does not know bfloat16
                names = opened.keys()
                tensors |= {name: np.asarray(opened.get_tensor(name)) for name in names}
        except SafetensorError as error:
            raise UserError(f"{file} cannot be read ({error}): copy it again") from None
    return tensors
