"""LoRA adapters in the format of PEFT: `adapter_config.json`, `adapter_model.safetensors`.

Shapes: I inputs, O outputs, R rank.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints import safetensors_file
from palr_jax.llm.checkpoints.peft_config import NAME, PeftConfig, read_peft_config
from palr_jax.llm.checkpoints.stored import Stored
from palr_jax.llm.checkpoints.weights import LINEARS
from palr_jax.llm.config import LoRAConfig, Target
from palr_jax.llm.llama import Llama
from palr_jax.llm.lora import Linear

_TENSORS = "adapter_model.safetensors"
# Without this prefix PEFT finds no tensors and silently leaves B at zero.
_PREFIX = "base_model.model.model.layers"
# The metadata key with the fingerprint of the base; other tools ignore it.
_BASE = "palr_jax.base"
_NAMES = re.compile(
    rf"{re.escape(_PREFIX)}\.(\d{{1,9}})\.(\w+\.\w+)\.lora_([AB])\.weight", re.ASCII
)


def write_adapter(model: Llama, lora: LoRAConfig, base: str, folder: Path) -> None:
    """Writes the adapters of a model.

    Args:
        model: a model whose adapters were made from `lora`.
        lora: their rank, alpha, dropout and targets.
        base: the path or hub name of the weights that the adapters belong to.
        folder: the output folder.
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
    (folder / NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_lora(folder: Path) -> LoRAConfig:
    """The rank, alpha, dropout and targets of an adapter.

    Raises:
        UserError: a file is missing or damaged, or the adapter is not plain LoRA on the linears
            of a LLaMA.
    """
    config = read_peft_config(folder)
    tensors, _ = safetensors_file.read_header(_file(folder))
    found = {_linear(name, folder): tensor for name, tensor in tensors.items()}
    targets = tuple(target for target in LINEARS if any(target == key[1] for key in found))
    if not targets:
        raise UserError(f"{folder} adapts no linear of a LLaMA: it belongs to another model")
    for (_, target, letter), tensor in found.items():
        rank = tensor.shape[:1] if letter == "A" else tensor.shape[1:]
        if rank != (config.rank,):
            raise UserError(
                f"{folder}: a tensor of {LINEARS[target]} has shape {tensor.shape}, its {NAME} "
                f"says rank {config.rank}: copy both files again"
            )
    return LoRAConfig(config.rank, config.alpha, config.dropout, targets)


def load_adapter(model: Llama, lora: LoRAConfig, folder: Path) -> None:
    """Loads an adapter into a model that was made with `read_lora(folder)`.

    An adapter may cover some layers only; the adapters of the other linears are set to zero.

    Raises:
        UserError: the adapter was made for another base: tensors are missing or have another
            shape, or the fingerprint of the base differs.
    """
    config = read_peft_config(folder)
    tensors, metadata = safetensors_file.read_header(_file(folder))
    _check_fit(tensors, dict(_tensors(model, lora)), folder)
    _check_whole(tensors, config, model.config.num_layers, folder)
    if metadata.get(_BASE, fingerprint(model)) != fingerprint(model):
        raise UserError(
            f"{folder} is an adapter for another base: it was trained on weights of the same "
            "shape, but not on these"
        )
    for target in lora.targets:
        linear = getattr(model.layers, target)
        for parameter, letter in ((linear.lora_a_IR, "A"), (linear.lora_b_RO, "B")):
            parts = np.zeros(parameter.shape, np.float32)
            for layer in range(model.config.num_layers):
                name = _name(layer, target, letter)
                if name in tensors:
                    parts[layer] = tensors[name].read().T
            parameter[...] = jax.device_put(parts, parameter[...].sharding)


def fingerprint(model: Llama) -> str:
    """A short fingerprint of base weights, the same in float32 and in bfloat16."""
    parts = [
        model.embedding_VD[...][:1024],
        model.norm.weight_D[...],
        model.layers.attention_norm.weight_D[...],
        model.layers.ffn_norm.weight_D[...],
    ]
    if model.config.qkv_bias:
        parts += [getattr(model.layers, name).bias_O[...] for name in ("q", "k", "v")]
    if model.config.qk_norm:
        parts += [model.layers.q_norm.weight_D[...], model.layers.k_norm.weight_D[...]]
    digest = hashlib.sha256(repr(model.config).encode())
    for part in parts:
        digest.update(np.asarray(part.astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()[:16]


def has_adapters(model: Llama) -> bool:
    """Whether a model has adapters."""
    return bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))


def _file(folder: Path) -> Path:
    if not (folder / _TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise UserError(
            f"{folder / 'adapter_model.bin'} is a pickle, which can run any code when it is "
            "opened; if you trust it, convert it: peft's "
            "PeftModel.from_pretrained(BASE, OLD).save_pretrained(NEW)"
        )
    return folder / _TENSORS


def _linear(name: str, folder: Path) -> tuple[int, Target, str]:
    """Parses the name of a tensor: its layer, linear, and "A" or "B"."""
    match = _NAMES.fullmatch(name)
    targets = [target for target, module in LINEARS.items() if match and match[2] == module]
    if match is None or not targets:
        raise UserError(
            f"{folder}: tensor {name} belongs to no linear of a LLaMA's layers; other adapters are "
            "not supported: merge the adapter with peft's merge_and_unload(), save the result and "
            "use that as the weights"
        )
    return int(match[1]), targets[0], match[3]


def _check_fit(tensors: Mapping[str, Stored], expected: Mapping[str, Stored], folder: Path) -> None:
    for name, tensor in tensors.items():
        if name not in expected:
            raise UserError(
                f"{folder} is an adapter for another base: tensor {name} is not in this one"
            )
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{folder} is an adapter for another base: tensor {name} has shape {tensor.shape}, "
                f"this one needs {expected[name].shape}"
            )


def _check_whole(
    tensors: Mapping[str, Stored], config: PeftConfig, num_layers: int, folder: Path
) -> None:
    """Checks that linears in the config have both A and B, and other linears both or neither."""
    for layer in range(num_layers):
        for target, module in LINEARS.items():
            names = [_name(layer, target, letter) for letter in "AB"]
            missing = [name for name in names if name not in tensors]
            demanded = config.demands(layer, f"model.layers.{layer}.{module}")
            if len(missing) == 1 or (missing and demanded):
                raise UserError(
                    f"{folder} is an adapter for another base: tensor {missing[0]} is missing "
                    "for this one"
                )


def _name(layer: int, target: Target, letter: str) -> str:
    return f"{_PREFIX}.{layer}.{LINEARS[target]}.lora_{letter}.weight"


def _tensors(model: Llama, lora: LoRAConfig) -> Iterator[tuple[str, Stored]]:
    """Yields the tensors of the adapters; PEFT stores A as [R, I] and B as [O, R]."""
    for layer in range(model.config.num_layers):
        for target in lora.targets:
            linear: Linear = getattr(model.layers, target)
            for parameter, letter in ((linear.lora_a_IR, "A"), (linear.lora_b_RO, "B")):
                _, rows, columns = parameter.shape
                read = partial(_read_layer, parameter, layer)
                stored = Stored((columns, rows), np.dtype(np.float32), read)
                yield _name(layer, target, letter), stored


def _read_layer(parameter: nnx.Param[jax.Array], layer: int) -> np.ndarray:
    return np.asarray(parameter[...][layer]).T
