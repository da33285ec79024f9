"""LLaMA checkpoints as GGUF files (llama.cpp), dequantised as they are read.

The package `gguf` knows the format and its quantisations.
"""

from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from palr_jax.errors import UserError
from palr_jax.llm.config import LinearScaling, Llama3Scaling, LlamaConfig
from palr_jax.llm.rope import llama3_divisors
from palr_jax.llm.stored import Stored
from palr_jax.llm.weights import LINEARS
from palr_jax.paths import in_bucket

_LINEARS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_LAYER = {f"{_LINEARS[target]}.weight": f"{name}.weight" for target, name in LINEARS.items()} | {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
_UNQUANTISED: dict[Any, np.dtype] = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
}


def open_file(path: Path) -> tuple[LlamaConfig, dict[str, Stored], dict[str, Any]]:
    """The shape of a model, its tensors by their Hugging Face names, and the metadata.

    Quantised tensors are read as float32, rows of queries and keys in Hugging Face's order.

    Raises:
        UserError: the file is missing, damaged or cut off, or the model is not a plain LLaMA.
    """
    if in_bucket(path):
        raise UserError(f"{path}: GGUF is read from disk alone: copy the file there")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        entries = {entry.name: entry for entry in reader.tensors}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a GGUF file") from None
    except Exception as error:  # the reader checks little and trips over what it meets
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as GGUF ({reason}): copy it again") from error
    config = _config(metadata, entries, path)
    tensors = {
        _hf_name(name): _stored(path, name, entry, config)
        for name, entry in entries.items()
        if name != _ROPE_FACTORS
    }
    return config, tensors, metadata


def _config(metadata: dict[str, Any], entries: dict[str, Any], path: Path) -> LlamaConfig:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{path}: architecture {architecture!r} is not supported; use a plain LLaMA checkpoint"
        )
    values = {
        name.removeprefix("llama."): value
        for name, value in metadata.items()
        if name.startswith("llama.")
    }
    for feature in ("expert_count", "attention.sliding_window"):
        if values.get(feature):
            raise UserError(f"{path}: {feature} is not supported; use a plain LLaMA checkpoint")
    try:
        heads = values["attention.head_count"]
        head_dim = values.get("attention.key_length") or values["embedding_length"] // heads
        partial_rotation = values.get("rope.dimension_count", head_dim) != head_dim
        other_values = values.get("attention.value_length", head_dim) != head_dim
        if partial_rotation or other_values:
            raise UserError(f"{path}: heads that are not rotated as a whole are not supported")
        theta = _shortest(values.get("rope.freq_base", 10_000.0))
        return LlamaConfig(
            vocab_size=int(entries["token_embd.weight"].shape[1]),
            dim=values["embedding_length"],
            num_layers=values["block_count"],
            num_heads=heads,
            num_kv_heads=values.get("attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn_dim=values["feed_forward_length"],
            max_length=values["context_length"],
            rope_theta=theta,
            rope_scaling=_scaling(values, entries, theta, head_dim, path),
            norm_eps=_shortest(values["attention.layer_norm_rms_epsilon"]),
            tie_embeddings="output.weight" not in entries,
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}: is it a LLaMA checkpoint?") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None


def _scaling(
    values: dict[str, Any], entries: dict[str, Any], theta: float, head_dim: int, path: Path
) -> LinearScaling | Llama3Scaling | None:
    kind = values.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UserError(f"{path}: rope type {kind!r} is not supported; linear and llama3 are")
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear", 1.0))
    linear = LinearScaling(float(factor)) if factor not in (0.0, 1.0) else None
    if _ROPE_FACTORS not in entries:
        return linear
    divisors_K = _read(path, entries[_ROPE_FACTORS], None)
    # The file holds the effect alone; the bounds and the length are those of LLaMA 3.1 to 3.3.
    scaling = Llama3Scaling(float(divisors_K.max()), 1.0, 4.0, 8192)
    plain_K = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if linear or not np.allclose(divisors_K, llama3_divisors(plain_K, scaling), rtol=1e-3):
        raise UserError(f"{path}: its {_ROPE_FACTORS} is not the one of LLaMA 3: not supported")
    return scaling


def _shortest(value: float) -> float:
    """The number that a float32 of the metadata was written from: 1e-05, not 9.9999997e-06."""
    return float(str(np.float32(value)))


def _hf_name(name: str) -> str:
    """The Hugging Face name of a tensor; an unknown name stays, and is refused by that name."""
    if name in _TOP:
        return _TOP[name]
    kind, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    if kind == "blk" and part in _LAYER:
        return f"model.layers.{layer}.{_LAYER[part]}"
    return name


def _stored(path: Path, name: str, entry: Any, config: LlamaConfig) -> Stored:
    shape = tuple(int(axis) for axis in entry.shape[::-1])  # GGUF names the fastest axis first
    heads = None
    if name.endswith("attn_q.weight"):
        heads = config.num_heads
    elif name.endswith("attn_k.weight"):
        heads = config.num_kv_heads
    dtype = _UNQUANTISED.get(entry.tensor_type, np.dtype(np.float32))
    return Stored(shape, dtype, partial(_read, path, entry, heads))


def _read(path: Path, entry: Any, heads: int | None) -> np.ndarray:
    """A tensor; `heads` is set where llama.cpp interleaves the two halves of each head's rows."""
    # A plain read: pages of the reader's memory map would stay resident.
    raw = np.fromfile(path, np.uint8, int(entry.n_bytes), offset=int(entry.data_offset))
    raw = raw.view(entry.data.dtype).reshape(entry.data.shape)
    try:
        value = (
            raw if entry.tensor_type in _UNQUANTISED else gguf.dequantize(raw, entry.tensor_type)
        )
    except NotImplementedError:
        raise UserError(
            f"{path}: tensor {entry.name} is quantised as {entry.tensor_type.name}, which the "
            "package gguf cannot read: convert it to Q8_0 or F16"
        ) from None
    if heads is None:
        return value
    rows, columns = value.shape
    pairs = value.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
