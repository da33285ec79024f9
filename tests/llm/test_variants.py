"""Logits of every variant against those that transformers gave for the same weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import DTypeLike

from palr_jax import llm
from tests.llm.variants import BF16, FIXTURES, KEPT, TOKENS, VARIANTS, write_checkpoint
from tests.programs import forward

EXPECTED = np.load(FIXTURES / "logits.npz")


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, VARIANTS[variant])
    model, tokenizer = llm.load(tmp_path)
    assert tokenizer is None
    logits = forward(model, jnp.array(TOKENS))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[:, KEPT], EXPECTED[variant], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_half_precision_in_shards_is_read_exactly(dtype: DTypeLike, tmp_path: Path) -> None:
    values = write_checkpoint(tmp_path, VARIANTS["llama3"], shards=3, dtype=dtype)
    half, _ = llm.load(tmp_path, dtype=None)
    wide, _ = llm.load(tmp_path, dtype="float32")
    for model, kind in ((half, dtype), (wide, np.float32)):
        kernel = np.asarray(model.layers.up.kernel_IO[1])
        assert kernel.dtype == kind
        expected = values["model.layers.1.mlp.up_proj.weight"].T
        np.testing.assert_array_equal(kernel, expected.astype(kind))
    logits = forward(half, jnp.array(TOKENS))
    assert logits.dtype == jnp.float32
    exact = forward(wide, jnp.array(TOKENS))
    # Rounding to 8 bits costs about a hundredth of the largest logit.
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
