"""LoRA adapters in the format of PEFT: `adapter_config.json`, `adapter_model.safetensors`.

Shapes: L layers, I inputs, O outputs, R rank.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.errors import UserError
from palr_jax.files import read_json
from palr_jax.llm import safetensors_file
from palr_jax.llm.config import LoRAConfig, Target
from palr_jax.llm.llama import Llama
from palr_jax.llm.stored import Stored
from palr_jax.llm.weights import LINEARS

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Without this prefix PEFT finds no tensor and leaves its B at zero, without a word.
_PREFIX = "base_model.model.model.layers"
# The key in the file's metadata that names the base; other tools pass over it.
_BASE = "palr_jax.base"
# What changes the computation, and cannot be done here.
_UNSUPPORTED = (
    "use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layer_replication", "target_parameters", "trainable_token_indices",
    "lora_bias", "megatron_config", "eva_config", "corda_config",
)  # fmt: skip


def write_adapter(model: Llama, lora: LoRAConfig, base: str, folder: Path) -> None:
    """Writes the adapters of a model.

    Args:
        model: carries adapters made from `lora`.
        lora: their rank, alpha, dropout and targets.
        base: where PEFT finds the weights that the adapters belong to.
        folder: gets the two files.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [LINEARS[target].split(".")[1] for target in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    metadata = {"format": "pt", _BASE: fingerprint(model)}
    safetensors_file.write_file(folder / _TENSORS, _tensors(model, lora), metadata)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_lora(folder: Path) -> LoRAConfig:
    """The rank, alpha, dropout and targets of an adapter.

    Raises:
        UserError: a file is missing or damaged, or the adapter is of a kind that is not known.
    """
    path = folder / _CONFIG
    if not path.exists():
        raise UserError(f"{path} is missing: name a PEFT adapter folder")
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')!r} is not supported")
    for feature in _UNSUPPORTED:
        if config.get(feature):
            raise UserError(f"{path}: {feature} is not supported; plain LoRA is")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path}: bias is not supported; plain LoRA is")
    tensors, _ = safetensors_file.read_header(_file(folder))
    targets = tuple(
        target for target in LINEARS if any(f".{LINEARS[target]}." in name for name in tensors)
    )
    if not targets:
        raise UserError(f"{folder} adapts no linear of a LLaMA: it belongs to another model")
    try:
        return LoRAConfig(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout", 0.0)),
            targets=targets,
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}: copy it again") from None


def load_adapter(model: Llama, lora: LoRAConfig, folder: Path) -> None:
    """Puts an adapter into a model that was made with `read_lora(folder)`.

    Raises:
        UserError: the adapter was made for another base: its tensors are missing, of another
            shape, or it says so itself.
    """
    tensors, metadata = safetensors_file.read_header(_file(folder))
    expected = dict(_tensors(model, lora))
    for name, tensor in expected.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape:
            what = "is missing" if found is None else f"has shape {found.shape}"
            raise UserError(
                f"{folder} is an adapter for another base: tensor {name} {what}, this one "
                f"needs {tensor.shape}"
            )
    surplus = sorted(tensors.keys() - expected.keys())
    if surplus:
        raise UserError(
            f"{folder} is an adapter for another base: tensor {surplus[0]} has no place in this one"
        )
    if metadata.get(_BASE, fingerprint(model)) != fingerprint(model):
        raise UserError(
            f"{folder} is an adapter for another base: it was trained on weights of the same "
            "shape, but not on these"
        )
    for target in lora.targets:
        linear = getattr(model.layers, target)
        for parameter, letter in ((linear.lora_a_IR, "A"), (linear.lora_b_RO, "B")):
            layers = [
                tensors[_name(layer, target, letter)].read().T.astype(np.float32)
                for layer in range(model.config.num_layers)
            ]
            parameter[...] = jax.device_put(np.stack(layers), parameter[...].sharding)


def fingerprint(model: Llama) -> str:
    """A short name for base weights, the same in float32 and in bfloat16."""
    parts = [
        model.embedding_VD[...][:1024],
        model.norm.weight_D[...],
        model.layers.attention_norm.weight_D[...],
        model.layers.ffn_norm.weight_D[...],
    ]
    digest = hashlib.sha256(repr(model.config).encode())
    for part in parts:
        digest.update(np.asarray(part.astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()[:16]


def has_adapters(model: Llama) -> bool:
    """Whether a model carries adapters."""
    return bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))


def _file(folder: Path) -> Path:
    if not (folder / _TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise UserError(
            f"{folder / 'adapter_model.bin'} is a pickle, which can run any code when it is "
            "opened; convert it where you trust it: peft's "
            "PeftModel.from_pretrained(BASE, OLD).save_pretrained(NEW)"
        )
    return folder / _TENSORS


def _name(layer: int, target: Target, letter: str) -> str:
    return f"{_PREFIX}.{layer}.{LINEARS[target]}.lora_{letter}.weight"


def _tensors(model: Llama, lora: LoRAConfig) -> Iterator[tuple[str, Stored]]:
    """Every tensor of the adapters; PEFT keeps A as [R, I] and B as [O, R]."""
    for layer in range(model.config.num_layers):
        for target in lora.targets:
            linear: Any = getattr(model.layers, target)
            for parameter, letter in ((linear.lora_a_IR, "A"), (linear.lora_b_RO, "B")):
                _, rows, columns = parameter.shape
                read = partial(_read, parameter, layer)
                stored = Stored((columns, rows), np.dtype(np.float32), read)
                yield _name(layer, target, letter), stored


def _read(parameter: Any, layer: int) -> np.ndarray:
    return np.asarray(parameter[...][layer]).T
