"""PALR in JAX: a sequential retriever proposes candidates, a fine-tuned LLaMA ranks them."""

from typing import Any

from palr_jax.errors import UserError

__all__ = ["Recommendation", "Recommender", "UserError"]


def __getattr__(name: str) -> Any:
    # The inference API brings JAX, which takes seconds to import: `palr --help` should not wait.
    if name in ("Recommendation", "Recommender"):
        from palr_jax import recommender  # noqa: PLC0415

        return getattr(recommender, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
