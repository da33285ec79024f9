from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.errors import UserError
from palr_jax.llm.tokenizer import Tokenizer, train_tokenizer

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
OWN = train_tokenizer(["Toy Story (1995)", "the user enjoys", "Heat (1995)"], 400)
TOKENIZERS = [OWN] + [
    Tokenizer.from_file(path)
    for path in (
        MODELS / "stories260K/tokenizer.model",
        MODELS / "mistral-32k-tokenizer/tokenizer.model",
    )
    if path.exists()
]
# A NUL byte ends a text in SentencePiece's C strings; titles are tidied of control characters.
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: str(t.vocab_size))
@settings(max_examples=50, deadline=None)
@given(segments=st.lists(TEXT, max_size=5))
def test_segments_decode_to_their_joined_text(tokenizer: Tokenizer, segments: list[str]) -> None:
    ids = [token for segment in segments for token in tokenizer.encode(f"{segment}\n")]
    if "▁" not in "".join(segments):  # SentencePiece's own sign for a space
        assert tokenizer.decode(ids) == "".join(f"{segment}\n" for segment in segments)
    assert max(ids, default=0) < tokenizer.vocab_size


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: str(t.vocab_size))
def test_a_line_break_is_one_token_that_never_merges(tokenizer: Tokenizer) -> None:
    (line_break,) = tokenizer.encode("\n")
    for text in ("Heat\n", ' "Heat (1995)"\n', "\n"):
        ids = tokenizer.encode(text)
        assert ids[-1] == line_break
        assert np.count_nonzero(ids == line_break) == 1


def test_begin_and_end_tokens_vanish_in_text() -> None:
    ids = [OWN.bos_id, *OWN.encode("Heat"), OWN.eos_id]
    assert OWN.decode(ids) == "Heat"


def test_training_is_deterministic() -> None:
    texts = [f"The {word} of {word} ({year})" for word in ("Sea", "Day") for year in range(99)]
    assert train_tokenizer(texts, 500).model == train_tokenizer(texts, 500).model


def test_a_wrong_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*: No such file"):
        Tokenizer.from_file(tmp_path / "none.model")
    broken = tmp_path / "tokenizer.model"
    broken.write_bytes(OWN.model[:200])
    with pytest.raises(UserError, match=r"tokenizer.model is not a SentencePiece model"):
        Tokenizer.from_file(broken)
