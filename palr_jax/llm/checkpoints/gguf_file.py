"""Checkpoints as GGUF files (llama.cpp), dequantised with the package `gguf`.

Architectures are llama (also Mistral), qwen2 (also Qwen 2.5) and qwen3.
"""

import math
import re
from functools import partial
from pathlib import Path

import gguf
import numpy as np
from pydantic import BaseModel, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from palr_jax.errors import UserError
from palr_jax.io.paths import in_bucket
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.gguf_header import TensorEntry, read_header
from palr_jax.llm.checkpoints.small_files import complaint, validated
from palr_jax.llm.checkpoints.stored import Stored
from palr_jax.llm.checkpoints.weights import LINEARS
from palr_jax.llm.config import (
    Family,
    LinearScaling,
    Llama3Scaling,
    LlamaConfig,
    NotNegative,
    Positive,
    PositiveFloat,
)
from palr_jax.llm.rope import llama3_divisors

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
# The names of tensors that only some architectures have; elsewhere they are refused by these.
_MORE: dict[Family, dict[str, str]] = {
    "llama": {},
    "qwen2": {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
    "qwen3": {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"},
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
_UNQUANTISED: dict[gguf.GGMLQuantizationType, np.dtype] = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
}
_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class _Shape(BaseModel):
    """The metadata that affect the computation, without the architecture before each name."""

    embedding_length: Positive = Field(alias="embedding_length")
    block_count: Positive = Field(alias="block_count")
    context_length: Positive = Field(alias="context_length")
    feed_forward_length: Positive = Field(alias="feed_forward_length")
    head_count: Positive = Field(alias="attention.head_count")
    head_count_kv: Positive | None = Field(None, alias="attention.head_count_kv")
    key_length: Positive | None = Field(None, alias="attention.key_length")
    value_length: Positive | None = Field(None, alias="attention.value_length")
    epsilon: NotNegative = Field(alias="attention.layer_norm_rms_epsilon")
    dimension_count: Positive | None = Field(None, alias="rope.dimension_count")
    freq_base: PositiveFloat = Field(10_000.0, alias="rope.freq_base")
    scaling: StrictStr | None = Field(None, alias="rope.scaling.type")
    scaling_factor: NotNegative | None = Field(None, alias="rope.scaling.factor")
    scale_linear: NotNegative | None = Field(None, alias="rope.scale_linear")
    expert_count: StrictInt | None = Field(None, alias="expert_count")
    sliding_window: StrictInt | None = Field(None, alias="attention.sliding_window")


def open_file(path: Path) -> tuple[LlamaConfig, dict[str, Stored], JsonObject]:
    """The shape of a model, its tensors by their Hugging Face names, and the metadata.

    Quantised tensors are read as float32, the rows of a LLaMA's queries and keys in Hugging Face's
    order. If a model is split into several files, `path` is the first.

    Raises:
        UserError: a file is missing, damaged or truncated, or the model is not a plain LLaMA,
            Qwen2 or Qwen3.
    """
    if in_bucket(path):
        raise UserError(f"{path}: GGUF can only be read from disk: copy it there")
    metadata, entries = read_header(path)
    for number, part in _other_parts(path, metadata):
        more, found = read_header(part)
        twice = entries.keys() & found.keys()
        if more.get("split.no") != number or twice:
            raise UserError(f"{part} does not belong to the same model as {path}: copy both again")
        entries |= found
    config = _config(metadata, entries, path)
    tensors = {
        _hf_name(name, config.family): _stored(entry, config)
        for name, entry in entries.items()
        if name != _ROPE_FACTORS
    }
    return config, tensors, metadata


def _other_parts(path: Path, metadata: dict[str, object]) -> list[tuple[int, Path]]:
    """The other files of a split model, with their numbers from 1."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if not isinstance(count, int) or count <= 1:
        return []
    name = _PART_NAME.fullmatch(path.name)
    if number != 0:
        raise UserError(f"{path} is not the first of the {count} files of a model: name the first")
    if name is None or int(name[2]) != 1 or int(name[3]) != count:
        raise UserError(
            f"{path} is the first of the {count} files of a model, which should be named "
            f"NAME-00001-of-{count:05}.gguf and so on: rename them"
        )
    parts = [
        path.with_name(f"{name[1]}-{part + 1:05}-of-{count:05}.gguf") for part in range(1, count)
    ]
    missing = [part for part in parts if not part.exists()]
    if missing:
        raise UserError(
            f"{path} is the first of {count} files of a model, of which {len(missing)} are missing "
            f"({missing[0].name}): copy them to the same folder"
        )
    return list(enumerate(parts, 1))


def _config(
    metadata: dict[str, object], entries: dict[str, TensorEntry], path: Path
) -> LlamaConfig:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _MORE:
        raise _unsupported(f"architecture {architecture!r}", path)
    before = f"{architecture}."
    own = {name.removeprefix(before): v for name, v in metadata.items() if name.startswith(before)}
    shape = validated(_Shape, own, f"{path}, {architecture}")
    for feature in ("expert_count", "sliding_window"):
        if getattr(shape, feature):
            raise _unsupported(feature, path)
    head_dim = shape.key_length or shape.embedding_length // shape.head_count
    if {shape.dimension_count, shape.value_length} - {None, head_dim}:
        raise UserError(f"{path}: partially rotated heads are not supported")
    if "token_embd.weight" not in entries:
        raise UserError(f"{path}: tensor token_embd.weight is missing")
    theta = _shortest(shape.freq_base)
    values = {
        "vocab_size": entries["token_embd.weight"].shape[0],
        "dim": shape.embedding_length,
        "num_layers": shape.block_count,
        "num_heads": shape.head_count,
        "num_kv_heads": shape.head_count_kv or shape.head_count,
        "head_dim": head_dim,
        "ffn_dim": shape.feed_forward_length,
        "max_length": shape.context_length,
        "rope_theta": theta,
        "rope_scaling": _scaling(shape, entries, theta, head_dim, path),
        "norm_eps": _shortest(shape.epsilon),
        "tie_embeddings": "output.weight" not in entries,
        "family": architecture,
    }
    try:
        return TypeAdapter(LlamaConfig).validate_python(values)
    except ValidationError as error:
        raise UserError(complaint(error, str(path))) from None


def _unsupported(feature: str, path: Path) -> UserError:
    return UserError(f"{path}: {feature} is not supported; use a plain LLaMA, Qwen2 or Qwen3")


def _scaling(
    shape: _Shape, entries: dict[str, TensorEntry], theta: float, head_dim: int, path: Path
) -> LinearScaling | Llama3Scaling | None:
    linear = _linear_scaling(shape, path)
    if _ROPE_FACTORS not in entries:
        return linear
    divisors_K = _read_tensor(entries[_ROPE_FACTORS], None)
    if divisors_K.shape != (head_dim // 2,) or not (divisors_K > 0).all():
        raise UserError(f"{path}: its {_ROPE_FACTORS} is damaged: copy it again")
    # The file has only the divisors; bounds and original length are those of LLaMA 3.1 to 3.3.
    scaling = Llama3Scaling(float(divisors_K.max()), 1.0, 4.0, 8192)
    plain_K = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if linear or not np.allclose(divisors_K, llama3_divisors(plain_K, scaling), rtol=1e-3):
        raise UserError(f"{path}: its {_ROPE_FACTORS} is not the one of LLaMA 3: not supported")
    return scaling


def _linear_scaling(shape: _Shape, path: Path) -> LinearScaling | None:
    kind = shape.scaling
    if kind not in (None, "none", "linear"):
        raise UserError(f"{path}: rope type {kind!r} is not supported; linear and llama3 are")
    factor = shape.scale_linear if shape.scaling_factor is None else shape.scaling_factor
    if kind == "linear" and factor == 0:
        raise UserError(f"{path}: rope.scaling.factor is 0: copy it again")
    # As in llama.cpp: 0 means no scaling, and a factor without a type is linear.
    if kind == "none" or factor in (None, 0.0, 1.0):
        return None
    return LinearScaling(_shortest(factor))


def _shortest(value: float) -> float:
    """The shortest decimal of a float32 in the metadata: 1e-05, not 9.9999997e-06."""
    with np.errstate(over="ignore", under="ignore"):
        short = float(str(np.float32(value)))
    return short if short and math.isfinite(short) else value


def _hf_name(name: str, family: Family) -> str:
    """The Hugging Face name of a tensor; unknown names are unchanged, and refused later."""
    if name in _TOP:
        return _TOP[name]
    kind, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    names = _LAYER | _MORE[family]
    if kind == "blk" and part in names:
        return f"model.layers.{layer}.{names[part]}"
    return name


def _stored(entry: TensorEntry, config: LlamaConfig) -> Stored:
    heads = None
    interleaved = config.family == "llama"  # Qwen's are as in Hugging Face's files
    if interleaved and entry.name.endswith("attn_q.weight"):
        heads = config.num_heads
    elif interleaved and entry.name.endswith("attn_k.weight"):
        heads = config.num_kv_heads
    dtype = _UNQUANTISED.get(entry.kind, np.dtype(np.float32))
    return Stored(entry.shape, dtype, partial(_read_tensor, entry, heads))


def _read_tensor(entry: TensorEntry, heads: int | None) -> np.ndarray:
    """Reads a tensor; `heads` undoes llama.cpp's interleaving of the two halves of each head."""
    raw = np.fromfile(entry.path, np.uint8, entry.nbytes, offset=entry.offset)
    if len(raw) != entry.nbytes:
        raise UserError(f"{entry.path} was cut off while it was read: copy it again")
    value = _dequantised(entry, raw)
    if heads is None:
        return value
    rows, columns = value.shape
    pairs = value.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _dequantised(entry: TensorEntry, raw: np.ndarray) -> np.ndarray:
    dtype = _UNQUANTISED.get(entry.kind)
    if dtype is not None:
        numbers = raw.view(dtype.newbyteorder(entry.order)).astype(dtype, copy=False)
        return numbers.reshape(entry.shape)
    try:
        if entry.order != "<":
            raise NotImplementedError
        with np.errstate(invalid="ignore", over="ignore"):  # scales may have any value
            return gguf.dequantize(raw.reshape(*entry.shape[:-1], -1), entry.kind)
    except NotImplementedError:
        raise UserError(
            f"{entry.path}: tensor {entry.name} is quantised as {entry.kind.name}, which cannot be "
            "read here: convert it to Q8_0 or F16"
        ) from None
