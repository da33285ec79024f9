import pytest
from flax import nnx

from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from tests.decoding.slow import Logits, full_passes

CONFIG = LlamaConfig(
    vocab_size=61, dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=40,
    max_length=512,
)  # fmt: skip
WIDTH = 112


@pytest.fixture(scope="session")
def tiny() -> Llama:
    """A random model whose next tokens are far from equally likely."""
    model = Llama(CONFIG, nnx.Rngs(params=0))
    model.embedding_VD[...] = model.embedding_VD[...] * 3
    return model


@pytest.fixture(scope="session")
def tiny_logits(tiny: Llama) -> Logits:
    return full_passes(tiny, WIDTH)
