"""SentencePiece models (LLaMA 1 and 2, Mistral, one's own) as tokenizers of segments."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece as spm

from palr_jax.errors import UserError


class SentencePieceTokenizer:
    """A `tokenizer.model`; see `palr_jax.llm.tokenizer.Tokenizer`.

    A LLaMA-style SentencePiece model puts a space before whatever it is given. Encoding behind a
    line break, which such a model never merges with its neighbours, keeps segments free of it, so
    the concatenated ids of two segments decode to the concatenation of their texts.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        """Takes a serialised SentencePiece model; `name` stands in error messages.

        Raises:
            UserError: the bytes are not a SentencePiece model, or it lacks a needed token.
        """
        self._model = model
        try:
            self._pieces = spm.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{name} is not a SentencePiece model: {error}") from None
        self._guard = self._pieces.encode("\n")
        if self._pieces.unk_id() in self._guard:
            raise UserError(f"{name} cannot write a line break: use a model with byte fallback")
        if self._pieces.bos_id() < 0 or self._pieces.eos_id() < 0:
            raise UserError(f"{name} has no begin or end token: LLaMA's prompts need both")

    @classmethod
    def from_file(cls, path: Path) -> "SentencePieceTokenizer":
        """Reads a `tokenizer.model`.

        Raises:
            UserError: the file is missing or is not a SentencePiece model.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._pieces.vocab_size())

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The begin token, which every LLaMA with such a model expects."""
        return (int(self._pieces.bos_id()),)

    @property
    def eos_id(self) -> int:
        """The token that ends a label."""
        return int(self._pieces.eos_id())

    def special_id(self, token: str) -> int | None:
        """The id of a control token, None if there is none."""
        number = int(self._pieces.piece_to_id(token))
        return number if self._pieces.is_control(number) else None

    def encode(self, segment: str) -> np.ndarray:
        """The token ids of one segment, int32 [T], without begin or end token."""
        ids = self._pieces.encode("\n" + segment)
        if ids[: len(self._guard)] != self._guard:
            raise ValueError(f"the tokenizer merges a line break with what follows: {segment!r}")
        return np.array(ids[len(self._guard) :], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; begin and end tokens vanish."""
        return str(self._pieces.decode([int(token) for token in [*self._guard, *ids]]))[1:]

    def files(self) -> dict[str, bytes]:
        """The serialised model."""
        return {"tokenizer.model": self._model}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Trains a LLaMA-style model (BPE with byte fallback) on lines of text.

    Pieces may cross digits and punctuation, which makes titles short; the vocabulary is smaller
    than asked for when the texts hold less.
    """
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())
