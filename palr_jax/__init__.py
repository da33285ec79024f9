"""PALR in JAX: a sequential retriever proposes candidates, a fine-tuned LLaMA ranks them."""
