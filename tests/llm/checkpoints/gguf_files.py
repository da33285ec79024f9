"""GGUF files as llama.cpp's converter writes them, from the tiny checkpoints of `variants`."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.llm.variants import tensors

# Rows of a quantised tensor come in blocks of 32.
CONFIG: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "model_type": "llama",
}  # fmt: skip
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "model.embed_tokens": "token_embd",
    "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def name_of(hf_name: str) -> str:
    """llama.cpp's name of a tensor."""
    stem, _, kind = hf_name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{kind}"


def permute(value: np.ndarray, heads: int) -> np.ndarray:
    """The order of the rows of a LLaMA's queries and keys in llama.cpp."""
    rows, columns = value.shape
    halves = value.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    kind: gguf.GGMLQuantizationType,
    config: dict[str, Any] = CONFIG,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Writes a GGUF file and returns its tensors as they should be read, by Hugging Face names."""
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    for key, value in (metadata or {}).items():
        add(writer, key, value)
    read = {}
    for name, value in tensors(config).items():
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}.get(
            name.split(".")[-2].removesuffix("_proj"), 0
        )
        if value.ndim == 1:
            writer.add_tensor(name_of(name), value)
            read[name] = value
            continue
        data = gguf.quantize(value, kind)
        read[name] = gguf.dequantize(data, kind)
        if heads and architecture == "llama":
            data = gguf.quantize(permute(value, heads), kind)
        writer.add_tensor(name_of(name), data, raw_dtype=kind)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a metadata value by its Python type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
