"""Hugging Face `tokenizer.json` files (LLaMA 3, SmolLM2, Qwen, …) as tokenizers of segments.

`JsonTokenizer(text, begin_ids, eos_id, name="tokenizer.json")` makes one in memory: `text` is the
content of a tokenizer.json, `begin_ids` the tokens that begin a prompt (may be empty), `eos_id` the
token that ends a label. `JsonTokenizer.from_file(path)` reads all three from a Hugging Face folder.

The package `tokenizers` is an extra (`hf`), so it is imported lazily.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, Field, StrictInt

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.small_files import read_bytes, read_object, validated
from palr_jax.llm.tokenizers.rust_panics import faults_refused
from palr_jax.llm.tokenizers.special_tokens import MAX_TOKENS, read_special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Pieces

# Texts that every tokenizer separates from a line break; they show how it treats the start of text.
_PROBES = ("a", '"a"', "The")


class _EndIds(BaseModel):
    """The end token in the configs of a model."""

    eos_token_id: StrictInt | Annotated[list[StrictInt], Field(min_length=1)] | None = None


class JsonTokenizer:
    """A `tokenizer.json`; see `palr_jax.llm.tokenizers.tokenizer.Tokenizer`.

    If the tokenizer treats the start of a text specially (LLaMA 2 and Mistral insert a space),
    segments are encoded after a line break, as with SentencePiece models.
    """

    def __init__(
        self, text: str, begin_ids: Sequence[int], eos_id: int, name: str = "tokenizer.json"
    ) -> None:
        """Takes the JSON and the special tokens; `name` is used in error messages.

        Raises:
            UserError: the package `tokenizers` is missing, the text is not a tokenizer.json, it
                cannot encode a line break, or a special token is not in its vocabulary.
        """
        self._given, self._name = text, name
        self._begin_ids = tuple(map(int, begin_ids))
        self._eos_id = int(eos_id)
        with faults_refused(f"{name} is not a tokenizer.json that works", silent=True):
            self._pieces = _parse(text, name)
            self._text, self._guard_text = self._prepare()
            self._guard = self._ids(self._guard_text)
            size = self.vocab_size
        if size > MAX_TOKENS:
            raise UserError(f"{name} has a token {size - 1:,}: no vocabulary is that large")

    def _prepare(self) -> tuple[str, str]:
        """The JSON with a post-processor that adds `begin_ids`, and the guard text of segments."""
        for token in (*self._begin_ids, self._eos_id):
            if token < 0 or self._pieces.id_to_token(token) is None:
                raise UserError(f"{self._name} has no token {token}: it belongs to another model")
        text = self._given
        if _begin_ids(self._pieces) != self._begin_ids:
            text = _with_begin(text, self._begin_ids, self._pieces)
        # A title may contain "</s>", which is ordinary text.
        self._pieces.encode_special_tokens = True
        if not self._pieces.decode(self._ids("a\nb")).endswith("a\nb"):
            raise UserError(f"{self._name} cannot write a line break, which ends every item")
        starts_alike = all(
            self._ids("\n" + probe) == self._ids("\n") + self._ids(probe) for probe in _PROBES
        )
        return text, "" if starts_alike else "\n"

    @classmethod
    def from_file(cls, path: Path) -> "JsonTokenizer":
        """Reads a `tokenizer.json` and the special tokens in the files next to it.

        The tokens that begin a prompt are those that the post-processor adds before a text; the
        token that ends a label is the end token that one of the other files names.

        Raises:
            UserError: a file is missing or damaged, or none names the end token.
        """
        try:
            text = read_bytes(path).decode()
        except UnicodeDecodeError:
            raise UserError(f"{path} cannot be read (not UTF-8): copy it again") from None
        with faults_refused(f"{path} is not a tokenizer.json that works", silent=True):
            pieces = _parse(text, str(path))
            begin_ids, eos_id = _begin_ids(pieces), _eos_in_folder(path, pieces)
        return cls(text, begin_ids, eos_id, str(path))

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return 1 + max(self._pieces.get_vocab(with_added_tokens=True).values())

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The tokens that begin a prompt."""
        return self._begin_ids

    @property
    def eos_id(self) -> int:
        """The token that ends a label."""
        return self._eos_id

    def special_id(self, token: str) -> int | None:
        """The id of an added special token; None if it does not exist."""
        for number, added in self._pieces.get_added_tokens_decoder().items():
            if added.special and added.content == token:
                return int(number)
        return None

    def encode(self, segment: str) -> np.ndarray:
        """The token ids of one segment, int32 [T], without begin or end token."""
        ids = self._ids(self._guard_text + segment)
        if ids[: len(self._guard)] != self._guard:
            raise UserError(
                f"{self._name} merges a line break with the text after it ({segment!r}): "
                "use another one"
            )
        return np.array(ids[len(self._guard) :], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; begin and end tokens are removed."""
        tokens = [*self._guard, *map(int, ids)]
        with faults_refused(f"{self._name} cannot write a text"):
            return str(self._pieces.decode(tokens))[len(self._guard_text) :]

    def below(self, size: int) -> "JsonTokenizer":
        """The same tokenizer without the added tokens whose ids are at least `size`."""
        content, ids = json.loads(self._given), self._pieces.get_vocab(with_added_tokens=True)
        content["added_tokens"] = [
            token for token in content.get("added_tokens") or () if ids[token["content"]] < size
        ]
        text = json.dumps(content, ensure_ascii=False)
        return JsonTokenizer(text, self._begin_ids, self._eos_id, self._name)

    def files(self) -> dict[str, bytes]:
        """The JSON, whose post-processor adds `begin_ids`, and the name of the end token."""
        config = {"eos_token": self._pieces.id_to_token(self._eos_id)}
        return {
            "tokenizer.json": self._text.encode(),
            "tokenizer_config.json": (json.dumps(config, ensure_ascii=False) + "\n").encode(),
        }

    def _ids(self, text: str) -> list[int]:
        with faults_refused(f"{self._name} cannot read a text"):
            return list(self._pieces.encode(text, add_special_tokens=False).ids)


def _parse(text: str, name: str) -> "Pieces":
    """Parses the JSON with the package `tokenizers`."""
    try:
        import tokenizers  # noqa: PLC0415
    except ImportError:
        raise UserError(
            f"{name} needs the package tokenizers: pip install 'palr-jax[hf]'"
        ) from None
    try:
        pieces = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain exceptions
        raise UserError(f"{name} is not a tokenizer.json: {' '.join(str(error).split())}") from None
    pieces.no_truncation()
    pieces.no_padding()
    return pieces


def _begin_ids(pieces: "Pieces") -> tuple[int, ...]:
    """The ids that the post-processor adds before a text."""
    marked, bare = pieces.encode("a").ids, pieces.encode("a", add_special_tokens=False).ids
    for start in range(len(marked) - len(bare) + 1):
        if marked[start : start + len(bare)] == bare:
            return tuple(marked[:start])
    return ()


def _eos_in_folder(path: Path, pieces: "Pieces") -> int:
    """The end token that the files next to a tokenizer.json name."""
    token = read_special_tokens(path.parent).eos
    if token is not None:
        number = pieces.token_to_id(token)
        if number is None:
            raise UserError(
                f"{path} lacks the end token {token!r} that the files next to it name: they belong "
                "to different models"
            )
        return int(number)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        file = path.with_name(name)
        if file.exists():
            numbers = validated(_EndIds, read_object(file), str(file)).eos_token_id
            if numbers is not None:
                return numbers[0] if isinstance(numbers, list) else numbers
    raise UserError(
        f"no file next to {path} names its end token: add tokenizer_config.json with eos_token"
    )


def _with_begin(text: str, begin_ids: Sequence[int], pieces: "Pieces") -> str:
    """The tokenizer.json with a post-processor that adds `begin_ids` before a text."""
    tokens = [pieces.id_to_token(number) for number in begin_ids]
    template = [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    single = [*template, {"Sequence": {"id": "A", "type_id": 0}}]
    content = json.loads(text)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in zip(tokens, begin_ids, strict=True)
        },
    }
    return json.dumps(content, ensure_ascii=False)
