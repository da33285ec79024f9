"""Shapes of well-known models, for planning without their weights."""

from palr_jax.llm.config import LlamaConfig

SHAPES = {
    "llama-7b": LlamaConfig(
        vocab_size=32_000, dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128,
        ffn_dim=11_008, max_length=2048, norm_eps=1e-6, tie_embeddings=False,
    ),
    "llama-13b": LlamaConfig(
        vocab_size=32_000, dim=5120, num_layers=40, num_heads=40, num_kv_heads=40, head_dim=128,
        ffn_dim=13_824, max_length=2048, norm_eps=1e-6, tie_embeddings=False,
    ),
    "llama2-70b": LlamaConfig(
        vocab_size=32_000, dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128,
        ffn_dim=28_672, max_length=4096, tie_embeddings=False,
    ),
}  # fmt: skip
