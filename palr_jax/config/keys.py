"""The keys of a config: which sections hold which, and what to say about one that is unknown."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping

from palr_jax.errors import UserError, shown

# Keys of earlier versions: the old one → the new one.
_RENAMED = {"tuned": "retriever_presets"}


def check_keys(raw: Mapping[str, object], where: str, schema: type, prefix: str = "") -> None:
    """Checks that nested plain data hold only keys of a config dataclass.

    Args:
        raw: keys and values, sections as mappings.
        where: the file or option that the error message names.
        schema: the dataclass.
        prefix: dotted path of `raw` in the config, with a trailing dot.

    Raises:
        UserError: a key is unknown, or a text holds a character that no file can hold.
    """
    hints = typing.get_type_hints(schema)
    names = {entry.name for entry in dataclasses.fields(schema)}
    for key, value in raw.items():
        if key not in names:
            raise UserError(f"{where}: unknown key {prefix}{key}; {_remedy(str(key), names)}")
        if isinstance(value, str):
            check_text(value, f"{where}: {prefix}{key}")
        section, _ = section_of(hints[key])
        if section is not None and isinstance(value, dict):
            check_keys(value, where, section, f"{prefix}{key}.")


def check_text(text: str, where: str) -> None:
    """Checks that a text can be written to a file.

    Raises:
        UserError: it holds NUL or half of a surrogate pair.
    """
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: {shown(text)} holds a character that no file or text can")


def section_of(hint: object) -> tuple[type | None, bool]:
    """The dataclass that a field holds (None for a plain value), and whether it may be null."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option, len(options) > 1
    return None, False


def hint_of(key: str, schema: type) -> object:
    """The type of the field with a dotted key.

    Raises:
        UserError: the key is unknown.
    """
    section: type | None = schema
    hint: object = None
    for name in key.split("."):
        hints = typing.get_type_hints(section) if section is not None else {}
        if name not in hints:
            raise UserError(f"--{key}: unknown key {key}; {_remedy(name, hints)}")
        hint = hints[name]
        section, _ = section_of(hint)
    return hint


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the most similar known word, or some of them if none is similar."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"it can be {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


def _remedy(key: str, known: Collection[str]) -> str:
    new = _RENAMED.get(key)
    return f"it is called {new} now" if new in known else nearest(key, known)
