"""The LLaMA family: model, LoRA, attention, key-value cache, tokenizers, weights in and out."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # The config schema imports this package but does not need JAX, which is slow to import.
    if name == "load":
        from palr_jax.llm.checkpoints.loading import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
