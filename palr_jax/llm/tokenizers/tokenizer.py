"""The interface of tokenizers, and loading the tokenizer of a model.

Two implementations exist:

- `SentencePieceTokenizer(model: bytes, name="tokenizer")`: a `tokenizer.model`;
- `JsonTokenizer(text: str, begin_ids: Sequence[int], eos_id: int, name="tokenizer.json")`: a
  Hugging Face `tokenizer.json`, or the same built in memory from a checkpoint's metadata.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from palr_jax.errors import UserError
from palr_jax.llm.tokenizers.json_tokenizer import JsonTokenizer
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer


class Tokenizer(Protocol):
    """Encodes a segment of text as token ids that do not depend on the surrounding text.

    The concatenated ids of two segments decode to the concatenated texts. The tokens that begin a
    prompt and end a label depend on the model; no text is ever encoded as one of them.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids; all ids are below it."""

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The tokens that begin a prompt; may be empty."""

    @property
    def eos_id(self) -> int:
        """The token that ends a label."""

    def special_id(self, token: str) -> int | None:
        """The id of a special token such as "<|im_start|>"; None if it does not exist."""

    def encode(self, segment: str) -> np.ndarray:
        """The token ids of one segment, int32 [T], without begin or end tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; begin and end tokens are removed."""

    def below(self, size: int) -> "Tokenizer":
        """The same tokenizer without the added tokens whose ids are at least `size`.

        Raises:
            UserError: one of them begins a prompt or ends a label.
        """

    def files(self) -> Mapping[str, bytes]:
        """The files by name; `load_tokenizer` restores this tokenizer from them."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a `tokenizer.model`, a `tokenizer.json`, or a folder with one of them.

    In a folder with both, `tokenizer.model` is used, as it needs no extra package.

    Raises:
        UserError: the file is missing, damaged or of another kind, it lacks a required token, or
            the package for it is not installed.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: name a tokenizer.model, a tokenizer.json or a folder")
    if path.is_dir():
        found = [path / name for name in ("tokenizer.model", "tokenizer.json")]
        present = [file for file in found if file.exists()]
        if not present:
            raise UserError(f"{path} holds no tokenizer.model and no tokenizer.json: add one")
        path = present[0]
    if path.suffix == ".json":
        return JsonTokenizer.from_file(path)
    return SentencePieceTokenizer.from_file(path)
