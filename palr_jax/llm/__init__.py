"""The LLaMA family: model, LoRA, attention, key-value cache, tokenizers, weights in and out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from palr_jax.llm.checkpoints.loading import load

__all__ = ["load"]

if not TYPE_CHECKING:  # a type checker would accept every name otherwise

    def __getattr__(name: str) -> object:
        # The config schema imports this package but not JAX, which takes seconds to import.
        if name == "load":
            from palr_jax.llm.checkpoints.loading import load  # noqa: PLC0415

            return load
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
