"""What the JSON files beside a tokenizer say of its special and added tokens.

As transformers reads them: `tokenizer_config.json`, and where that lists no added tokens, the
older `special_tokens_map.json`, `added_tokens.json` and the list in `tokenizer.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel, StrictBool, StrictStr

from palr_jax.llm.checkpoints.small_files import read_object, validated

# Far more than any vocabulary; an id beyond it is damage, and would ask for any amount of memory.
MOST_TOKENS = 1 << 20
_Id = Annotated[int, Field(ge=0, lt=MOST_TOKENS)]


class Token(BaseModel):
    """An added token.

    Attributes:
        content: its text.
        special: it is never read out of a text.
    """

    content: StrictStr
    special: StrictBool = False


class _Numbered(Token):
    id: _Id


class _Names(BaseModel):
    """The named special tokens, as two of the files list them."""

    bos_token: StrictStr | Token | None = None
    eos_token: StrictStr | Token | None = None
    unk_token: StrictStr | Token | None = None
    pad_token: StrictStr | Token | None = None
    additional_special_tokens: list[StrictStr | Token] | None = None
    extra_special_tokens: list[StrictStr | Token] | dict[str, Any] | None = None
    add_bos_token: StrictBool | None = None
    added_tokens_decoder: dict[_Id, Token] | None = None


class _Added(RootModel[dict[StrictStr, _Id]]):
    """The content of `added_tokens.json`: ids by texts."""


class _Listed(BaseModel):
    """What matters here of a `tokenizer.json`."""

    added_tokens: list[_Numbered] | None = None


@dataclass(frozen=True)
class SpecialTokens:
    """What is known of a tokenizer's special tokens beside its own file.

    Attributes:
        bos: the text of the token that begins a prompt; None where no file names it.
        eos: the text of the token that ends a label; None where no file names it.
        begins: whether a prompt begins with a token.
        added: tokens by their ids, beside those of the tokenizer's own file or in their place.
    """

    bos: str | None = None
    eos: str | None = None
    begins: bool = True
    added: Mapping[int, Token] = field(default_factory=dict)


NOTHING_SAID = SpecialTokens()


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Reads the files in a folder; those that are missing say nothing.

    Raises:
        UserError: a file is damaged, or a value of another kind than it should be.
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
    """The added tokens as two older files list them."""
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


def _object(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The content of a file that `model` describes; nothing where there is no file."""
    if not path.exists():
        return {}
    content = read_object(path)
    validated(model, content, str(path))
    return content


def _text(token: str | Token | None) -> str | None:
    """The text of a named token; some old files name an empty one, which is none."""
    return (token.content if isinstance(token, Token) else token) or None
