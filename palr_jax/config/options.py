"""The options that a config has, each with its values, its default and what it does.

The docstrings of the config dataclasses are the one source: `palr COMMAND --help` and
docs/configuration.md are made from their "Attributes:".
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from palr_jax.config.keys import section_of
from palr_jax.config.schema import Config

_HEADING = "\nAttributes:\n"
_ENTRY = re.compile(r"^    (\w+): ", re.MULTILINE)
_WORDS = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    dict: "mapping",
    type(None): "null",
}


@dataclass(frozen=True)
class Option:
    """One key of a config.

    Attributes:
        key: dotted, as on the command line.
        values: the values that it takes, in words.
        default: as YAML; empty if the key must be set.
        about: what it does.
    """

    key: str
    values: str
    default: str
    about: str


@dataclass(frozen=True)
class Section:
    """The keys of one config dataclass.

    Attributes:
        key: dotted path of the section, empty for the keys outside of all sections.
        about: what the section holds.
        options: its keys in the order of the dataclass, without those of sections in it.
    """

    key: str
    about: str
    options: tuple[Option, ...]


def sections() -> list[Section]:
    """All sections of a config in the order of the schema, each before those inside of it."""
    return list(_sections(Config, ""))


def option_keys() -> list[str]:
    """The dotted keys of all options."""
    return [option.key for section in sections() for option in section.options]


def _sections(schema: type, key: str) -> Iterator[Section]:
    hints = typing.get_type_hints(schema, include_extras=True)
    intro, abouts = _documented(schema)
    options: list[Option] = []
    inner: list[Section] = []
    prefix = f"{key}." if key else ""
    for entry in dataclasses.fields(schema):
        hint = hints[entry.name]
        section, is_optional = section_of(hint)
        if section is not None:
            inner += _sections(section, f"{prefix}{entry.name}")
        if section is None or is_optional:
            about = abouts.get(entry.name, "")
            options.append(Option(f"{prefix}{entry.name}", _values(hint), _default(entry), about))
    yield Section(key, intro, tuple(options))
    yield from inner


def _documented(schema: type) -> tuple[str, dict[str, str]]:
    """What the docstring of a dataclass says of it, and of each of its attributes."""
    intro, _, attributes = (inspect.getdoc(schema) or "").partition(_HEADING)
    parts = _ENTRY.split(attributes)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return intro.strip(), {name: " ".join(text.split()).rstrip(".") for name, text in pairs}


def _values(hint: object) -> str:
    """The values of a type in words: "integer", "sasrec or bert", "text or null"."""
    words = _alternatives(hint)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _alternatives(hint: object) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _alternatives(inner[0])
    if origin is Literal:
        return [str(value) for value in inner]
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return [word for kind in inner for word in _alternatives(kind)]
    if origin is tuple:
        return [f"list of {_values(inner[0])}"]
    if dataclasses.is_dataclass(hint):
        return ["section"]
    return [_WORDS[typing.cast(type, origin or hint)]]


def _default(entry: "dataclasses.Field[object]") -> str:
    """The default of a key as YAML."""
    if entry.default_factory is not dataclasses.MISSING:
        return str(entry.default_factory())
    match entry.default:
        case dataclasses.MISSING:
            return ""
        case None:
            return "null"
        case bool() as value:
            return str(value).lower()
        case tuple() as values:
            return f"[{', '.join(map(str, values))}]"
        case value:
            return str(value)
