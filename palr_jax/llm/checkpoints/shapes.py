"""Shapes of well-known models, for planning without their weights."""

from palr_jax.llm.config import Llama3Scaling, LlamaConfig

_LLAMA32 = Llama3Scaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192
)
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
    "llama3.2-1b": LlamaConfig(
        vocab_size=128_256, dim=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64,
        ffn_dim=8192, max_length=131_072, rope_theta=500_000.0, rope_scaling=_LLAMA32,
    ),
    "llama3.2-3b": LlamaConfig(
        vocab_size=128_256, dim=3072, num_layers=28, num_heads=24, num_kv_heads=8, head_dim=128,
        ffn_dim=8192, max_length=131_072, rope_theta=500_000.0, rope_scaling=_LLAMA32,
    ),
    "mistral-7b-v0.3": LlamaConfig(
        vocab_size=32_768, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
        ffn_dim=14_336, max_length=32_768, rope_theta=1_000_000.0, tie_embeddings=False,
        family="mistral",
    ),
    "qwen2.5-0.5b": LlamaConfig(
        vocab_size=151_936, dim=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64,
        ffn_dim=4864, max_length=32_768, rope_theta=1_000_000.0, norm_eps=1e-6, family="qwen2",
    ),
    "qwen2.5-7b": LlamaConfig(
        vocab_size=152_064, dim=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128,
        ffn_dim=18_944, max_length=131_072, rope_theta=1_000_000.0, norm_eps=1e-6,
        tie_embeddings=False, family="qwen2",
    ),
    "qwen3-0.6b": LlamaConfig(
        vocab_size=151_936, dim=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
        ffn_dim=3072, max_length=40_960, rope_theta=1_000_000.0, norm_eps=1e-6, family="qwen3",
    ),
    "qwen3-8b": LlamaConfig(
        vocab_size=151_936, dim=4096, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128,
        ffn_dim=12_288, max_length=40_960, rope_theta=1_000_000.0, norm_eps=1e-6,
        tie_embeddings=False, family="qwen3",
    ),
}  # fmt: skip
