"""PALR in JAX: a sequential retriever proposes candidates, a fine-tuned LLaMA ranks them."""

from typing import TYPE_CHECKING

from palr_jax.errors import UserError

if TYPE_CHECKING:
    from palr_jax.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender", "UserError"]

if not TYPE_CHECKING:  # a type checker would accept every name otherwise

    def __getattr__(name: str) -> object:
        # The inference API imports JAX, which takes seconds: `palr --help` should not wait for it.
        if name in ("Recommendation", "Recommender"):
            from palr_jax import recommender  # noqa: PLC0415

            return getattr(recommender, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
