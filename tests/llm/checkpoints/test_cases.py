"""Folders that users reported: each loads with the logits of transformers, or is refused.

They are in `shared/cases` next to the checkout; without it these tests are skipped.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax import llm
from palr_jax.errors import UserError
from tests.locations import SHARED
from tests.programs import forward

CASES = SHARED / "cases"
BASE = CASES / "hf-sp-no-bos"
TOKENS = jnp.array([[1, 5, 9, 200, 31, 77, 12, 300, 8, 8, 41, 2]])

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="shared/cases is not here")


def test_added_tokens_beyond_the_embedding() -> None:
    model, tokenizer = llm.load(CASES / "hf-json-added-beyond")
    expected = np.load(CASES / "hf-json-added-beyond" / "want.npy")
    np.testing.assert_allclose(forward(model, TOKENS)[0], expected, atol=1e-5)
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.begin_ids, tokenizer.eos_id) == (400, (1,), 2)
    assert tokenizer.special_id("<PRE>") is None


def test_an_added_end_token_beside_a_sentencepiece_model() -> None:
    _, tokenizer = llm.load(CASES / "hf-sp-added-eos")
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.begin_ids, tokenizer.eos_id) == (402, (1,), 401)
    assert tokenizer.special_id("<|im_start|>") == 400


def test_a_model_without_a_begin_token() -> None:
    _, tokenizer = llm.load(BASE)
    assert tokenizer is not None
    assert tokenizer.begin_ids == ()


def test_an_adapter_of_the_first_layer() -> None:
    model, _ = llm.load(BASE, adapter=CASES / "peft-regex-layer0")
    expected = np.load(CASES / "peft-regex-layer0" / "want.npy")
    np.testing.assert_allclose(forward(model, TOKENS)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "adapter", "complaint"),
    [
        ("hf-lfs-pointer", None, r"model.safetensors is a Git LFS pointer .*git lfs pull"),
        ("hf-sp-no-bos", "peft-pissa", r"init_lora_weights 'pissa' is not supported"),
    ],
)
def test_what_cannot_be_loaded_says_why(path: str, adapter: str | None, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        llm.load(CASES / path, adapter=CASES / adapter if adapter else None)
