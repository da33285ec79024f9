"""SentencePiece models (LLaMA 1 and 2, Mistral, self-trained) as tokenizers of segments."""

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import sentencepiece as spm

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.small_files import read_bytes
from palr_jax.llm.tokenizers.sentencepiece_model import with_special_tokens
from palr_jax.llm.tokenizers.special_tokens import (
    NO_SPECIAL_TOKENS,
    SpecialTokens,
    read_special_tokens,
)

_NAME = "tokenizer.model"


class SentencePieceTokenizer:
    """A `tokenizer.model`; see `palr_jax.llm.tokenizers.tokenizer.Tokenizer`.

    A LLaMA-style SentencePiece model inserts a space before every text. Segments are therefore
    encoded after a line break, which such a model never merges with its neighbours; so the
    concatenated ids of two segments decode to the concatenation of their texts.
    """

    def __init__(
        self, model: bytes, name: str = "tokenizer", special: SpecialTokens = NO_SPECIAL_TOKENS
    ) -> None:
        """Takes a serialised SentencePiece model; `name` is used in error messages.

        `special` has the special and added tokens that are defined outside of the model.

        Raises:
            UserError: the bytes are not a SentencePiece model, it lacks a required token, or the
                added tokens contradict it.
        """
        self._model, self._name, self._special = model, name, special
        try:
            self._pieces = spm.SentencePieceProcessor(
                model_proto=with_special_tokens(model, special, name)
            )
            self._guard = self._pieces.encode("\n")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{name} is not a SentencePiece model: {error}") from None
        if self._pieces.unk_id() in self._guard:
            raise UserError(f"{name} cannot write a line break: use a model with byte fallback")
        if self._pieces.eos_id() < 0 or (special.begins and self._pieces.bos_id() < 0):
            raise UserError(f"{name} has no begin or end token: LLaMA's prompts need both")

    @classmethod
    def from_file(cls, path: Path) -> "SentencePieceTokenizer":
        """Reads a SentencePiece model.

        If its name is `tokenizer.model`, the special tokens in the JSON files next to it are read
        too.

        Raises:
            UserError: a file is missing or damaged, or the files belong to different models.
        """
        model = read_bytes(path)
        if path.name != _NAME:  # the files next to it may belong to another tokenizer
            return cls(model, str(path))
        return cls(model, str(path), read_special_tokens(path.parent))

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._pieces.vocab_size())

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The begin token; empty if the files of the model disable it."""
        return (int(self._pieces.bos_id()),) if self._special.begins else ()

    @property
    def eos_id(self) -> int:
        """The token that ends a label."""
        return int(self._pieces.eos_id())

    def special_id(self, token: str) -> int | None:
        """The id of a control token; None if it does not exist."""
        number = int(self._pieces.piece_to_id(token))
        return number if self._pieces.is_control(number) else None

    def encode(self, segment: str) -> np.ndarray:
        """The token ids of one segment, int32 [T], without begin or end token."""
        ids = self._pieces.encode("\n" + segment)
        if ids[: len(self._guard)] != self._guard:
            raise UserError(
                f"{self._name} merges a line break with the text after it ({segment!r}): "
                "use another one"
            )
        return np.array(ids[len(self._guard) :], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; begin and end tokens are removed."""
        return str(self._pieces.decode([int(token) for token in [*self._guard, *ids]]))[1:]

    def below(self, size: int) -> "SentencePieceTokenizer":
        """The same tokenizer without the added tokens whose ids are at least `size`."""
        added = {number: token for number, token in self._special.added.items() if number < size}
        return SentencePieceTokenizer(self._model, self._name, replace(self._special, added=added))

    def files(self) -> dict[str, bytes]:
        """The serialised model, and a `tokenizer_config.json` for transformers."""
        settings = json.dumps(self._settings(), indent=2, ensure_ascii=False)
        return {
            _NAME: self._model,
            "tokenizer_config.json": f"{settings}\n".encode(),
        }

    def _settings(self) -> dict[str, object]:
        pieces, special = self._pieces, self._special
        bos = pieces.id_to_piece(pieces.bos_id()) if pieces.bos_id() >= 0 else special.bos
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": bos,
            "eos_token": pieces.id_to_piece(pieces.eos_id()),
            "unk_token": pieces.id_to_piece(pieces.unk_id()),
            "add_bos_token": special.begins,
            "add_eos_token": False,
            "add_prefix_space": "".join(pieces.encode("a", out_type=str)).startswith("▁"),
            "legacy": False,
            "added_tokens_decoder": {
                str(number): {"content": token.content, "special": token.special, **flags}
                for number, token in sorted(special.added.items())
            },
        }


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Trains a LLaMA-style model (BPE with byte fallback) on lines of text.

    Pieces may span digits and punctuation, which makes titles short; the vocabulary is smaller than
    `vocab_size` if the texts do not suffice.
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
