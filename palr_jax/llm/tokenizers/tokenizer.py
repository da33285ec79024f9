"""What every tokenizer does, and reading the one that lies beside a model.

Two kinds are known, each in a file of its own:

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
    """Turns one segment of text into token ids, the same ids wherever the segment stands.

    The ids of two segments end to end decode to the texts of both end to end. What begins a
    prompt and what ends a label are the model's own rules; neither is ever read out of a text.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids; all ids are below it."""

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The tokens that begin a prompt; some models have none."""

    @property
    def eos_id(self) -> int:
        """The token that ends a label."""

    def special_id(self, token: str) -> int | None:
        """The id of a special token such as "<|im_start|>", None if there is none."""

    def encode(self, segment: str) -> np.ndarray:
        """The token ids of one segment, int32 [T], without begin or end tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; begin and end tokens vanish."""

    def below(self, size: int) -> "Tokenizer":
        """The same tokenizer without the added tokens from number `size` on.

        Raises:
            UserError: one of them begins a prompt or ends a label.
        """

    def files(self) -> Mapping[str, bytes]:
        """The files, by name, from which `load_tokenizer` makes this tokenizer again."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizer.model`, a `tokenizer.json`, or the one of them that lies in a folder.

    A folder that holds both gives its `tokenizer.model`, which needs no extra package.

    Raises:
        UserError: there is none, it is damaged or of another kind, it lacks a needed token, or
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
