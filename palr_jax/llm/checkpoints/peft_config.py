"""The `adapter_config.json` of a PEFT adapter; only plain LoRA is supported.

PEFT has dozens of settings, most of which change what an adapter computes, or the base weights. So
a setting is refused unless it is known to change neither, or is off.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StrictBool

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.small_files import read_object, validated
from palr_jax.llm.config import Positive, PositiveFloat

NAME = "adapter_config.json"

# Settings that are safe to ignore: origins, initialisation, and which linears have adapters, which
# also follows from the tensors.
_HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
        "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type",
        "use_rslora",
        # PEFT sets it to false for the linears of a LLaMA.
        "fan_in_fan_out",
    }
)  # fmt: skip
# Initialisations that do not change the base weights.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")


class _Content(BaseModel):
    r: Positive
    lora_alpha: PositiveFloat
    lora_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)] = 0.0
    use_rslora: StrictBool | None = False
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None


@dataclass(frozen=True)
class PeftConfig:
    """The settings of an adapter that affect its computation.

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / rank, also if PEFT uses another formula.
        dropout: dropout rate of an adapter's inputs in training.
        targets: suffixes of the names of linears; None if the config has a regular expression.
        excluded: suffixes of the names of linears that are exempt from `targets`.
        layers: the layers with adapters; None for all.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...]
    layers: tuple[int, ...] | None

    def demands(self, layer: int, module: str) -> bool:
        """Whether a linear of a layer must have an adapter by the config."""
        if self.targets is None or (self.layers is not None and layer not in self.layers):
            return False
        return _ends(module, self.targets) and not _ends(module, self.excluded)


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads the config of an adapter.

    Raises:
        UserError: it is missing or damaged, or the adapter is not plain LoRA.
    """
    path = folder / NAME
    if not path.exists():
        raise UserError(f"{path} is missing: name a PEFT adapter folder")
    values = read_object(path)
    _refuse_unsupported(values, path)
    content = validated(_Content, values, str(path))
    named, excluded, layers = (
        content.target_modules,
        content.exclude_modules,
        content.layers_to_transform,
    )
    by_expression = not isinstance(named, list) or isinstance(excluded, str)
    if isinstance(layers, int):
        layers = [layers]
    # rsLoRA divides alpha by √r instead of r (Kalajdzievski 2023).
    stretch = math.sqrt(content.r) if content.use_rslora else 1.0
    return PeftConfig(
        rank=content.r,
        alpha=content.lora_alpha * stretch,
        dropout=content.lora_dropout,
        targets=None if by_expression else tuple(named or ()),
        excluded=tuple(excluded or ()) if isinstance(excluded, list) else (),
        layers=tuple(layers) if layers else None,
    )


def _refuse_unsupported(values: dict[str, object], path: Path) -> None:
    kind, start = values.get("peft_type"), values.get("init_lora_weights", True)
    if kind != "LORA":
        raise UserError(f"{path}: peft_type {kind!r} is not supported; plain LoRA is")
    for key, value in values.items():
        off = not value or (key == "bias" and value == "none")
        if key not in _HARMLESS and not off:
            raise UserError(f"{path}: {key} is not supported; plain LoRA is")
    if start and start is not True and start not in _PLAIN_STARTS:
        raise UserError(
            f"{path}: init_lora_weights {start!r} is not supported, as it changes the weights "
            "of the base; save it as plain LoRA (peft: "
            "save_pretrained(NEW, path_initial_model_for_weight_conversion=START)) or merge it"
        )


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
