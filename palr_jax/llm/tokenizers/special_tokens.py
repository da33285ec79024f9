"""The special and added tokens in the JSON files next to a tokenizer.

They are read as by transformers: `tokenizer_config.json`, and if that lists no added tokens, the
older `special_tokens_map.json`, `added_tokens.json` and the list in `tokenizer.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, RootModel, StrictBool, StrictStr

from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.small_files import read_object, validated

# Far more than any vocabulary. A larger id means a damaged file, and could allocate any amount of
# memory.
MAX_TOKENS = 1 << 20
_Id = Annotated[int, Field(ge=0, lt=MAX_TOKENS)]


class Token(BaseModel):
    """An added token.

    Attributes:
        content: its text.
        special: whether no text is ever encoded as it.
    """

    content: StrictStr
    special: StrictBool = False


class _Numbered(Token):
    id: _Id


class _Names(BaseModel):
    """The named special tokens, as in `tokenizer_config.json` and `special_tokens_map.json`."""

    bos_token: StrictStr | Token | None = None
    eos_token: StrictStr | Token | None = None
    unk_token: StrictStr | Token | None = None
    pad_token: StrictStr | Token | None = None
    additional_special_tokens: list[StrictStr | Token] | None = None
    extra_special_tokens: list[StrictStr | Token] | dict[str, object] | None = None
    add_bos_token: StrictBool | None = None
    added_tokens_decoder: dict[_Id, Token] | None = None


class _Added(RootModel[dict[StrictStr, _Id]]):
    """The content of `added_tokens.json`: ids by text."""


class _Listed(BaseModel):
    """The part of a `tokenizer.json` that is read here."""

    added_tokens: list[_Numbered] | None = None


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens that are defined outside of a tokenizer's main file.

    Attributes:
        bos: the text of the token that begins a prompt; None if no file names it.
        eos: the text of the token that ends a label; None if no file names it.
        begins: whether a prompt begins with a token.
        added: tokens by id; they extend or replace those of the tokenizer's main file.
    """

    bos: str | None = None
    eos: str | None = None
    begins: bool = True
    added: Mapping[int, Token] = field(default_factory=dict)


NO_SPECIAL_TOKENS = SpecialTokens()


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Reads the files in a folder; all of them are optional.

    Raises:
        UserError: a file is damaged, or a value has the wrong type.
    """
    config = _object(folder / "tokenizer_config.json", _Names)
    names = _Names.model_validate(config)
    added = names.added_tokens_decoder
    if added is None:
        older = _object(folder / "special_tokens_map.json", _Names)
        names = _Names.model_validate(config | older)
        added = _older_added(folder, names)
    return SpecialTokens(
        bos=_text(names.bos_token),
        eos=_text(names.eos_token),
        begins=names.add_bos_token is not False,
        added=added,
    )


def _older_added(folder: Path, names: _Names) -> dict[int, Token]:
    """The added tokens of `added_tokens.json` and `tokenizer.json`."""
    texts = {_text(token) for token in _special(names)}
    ids = _object(folder / "added_tokens.json", _Added)
    added = {
        int(number): Token(content=text, special=text in texts) for text, number in ids.items()
    }
    listed = _Listed.model_validate(_object(folder / "tokenizer.json", _Listed))
    return added | {token.id: token for token in listed.added_tokens or ()}


def _special(names: _Names) -> list[str | Token | None]:
    more = [names.additional_special_tokens, names.extra_special_tokens]
    return [
        names.bos_token,
        names.eos_token,
        names.unk_token,
        names.pad_token,
        *(token for part in more if isinstance(part, list) for token in part),
    ]


def _object(path: Path, model: type[BaseModel]) -> JsonObject:
    """The content of a file, validated by `model`; empty if the file is missing."""
    if not path.exists():
        return {}
    content = read_object(path)
    validated(model, content, str(path))
    return content


def _text(token: str | Token | None) -> str | None:
    """The text of a named token; None also for an empty one, which some old files have."""
    return (token.content if isinstance(token, Token) else token) or None
