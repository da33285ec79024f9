"""Reads a config: a YAML file, the presets in it, and the values of the command line."""

import types
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from palr_jax.config.keys import check_keys, check_text, hint_of
from palr_jax.config.options import option_keys
from palr_jax.config.schema import Config
from palr_jax.errors import UserError, shown
from palr_jax.io.strict_yaml import read_yaml
from palr_jax.retrieval.config import RetrieverConfig

_LONGEST = 1_000_000
# The config.yaml of a run directory also names the version that wrote it.
VERSION_KEY = "palr_jax"
_SCHEMA = TypeAdapter(Config)


def load_config(path: Path, overrides: dict[str, str]) -> Config:
    """Reads a YAML config and puts command-line values over it.

    Of one key, the command line wins over the file, the file over the preset of the chosen
    retriever (`retriever_presets`), and that over the default.

    Args:
        path: the YAML file; the config.yaml of a run directory will do.
        overrides: dotted key → value as text, for example {"retriever.model": "popularity"}. A
            key of type text takes its value verbatim (`null` is None where None is allowed), all
            others are read as YAML.

    Raises:
        UserError: the file is missing or not YAML; a key is unknown; a value is of the wrong
            type or out of range. The message names the option if an override is to blame.
    """
    raw = _read_file(path)
    raw.pop(VERSION_KEY, None)
    check_keys(raw, str(path), Config)
    values = {key: _value(key, text) for key, text in overrides.items()}
    _put_preset(raw, values)
    for key, value in values.items():
        _put(raw, key, value)
    return _parse(raw, str(path), tuple(overrides))


def parse_config(raw: dict[str, object], where: str) -> Config:
    """Checks a nested dict against the schema; error messages begin with `where`.

    Raises:
        UserError: as `load_config`.
    """
    return _parse(raw, where, ())


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no config: it must map keys to values, as configs/*.yaml do")
    return raw


def _parse(raw: dict[str, object], where: str, options: tuple[str, ...]) -> Config:
    """The config of a nested dict into which the values of `options` were put."""
    check_keys(raw, where, Config)
    try:
        return _SCHEMA.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        known = set(option_keys())
        # After the path of the key, pydantic names the branch of a union that it tried.
        path = [str(part) for part in first["loc"]]
        while path and ".".join(path) not in known and not _is_section(".".join(path), known):
            path.pop()
        key = ".".join(path)
        message = first["msg"].removeprefix("Value error, ")
        is_complete = first["type"] in ("value_error", "missing")
        given = "" if is_complete else f", not {shown(first['input'])}"
        complaint = f"{message[0].lower()}{message[1:]}{given}"
        raise UserError(f"{_blamed(key, where, options)}: {complaint}") from None


def _blamed(key: str, where: str, options: tuple[str, ...]) -> str:
    """The option that holds a wrong value, or the file and the options that may hold it."""
    holders = [option for option in options if key == option or key.startswith(f"{option}.")]
    if holders:
        return f"--{holders[-1]}: {key}" if holders[-1] != key else f"--{key}"
    below = [option for option in options if not key or option.startswith(f"{key}.")]
    file = f"{where} with {', '.join(f'--{option}' for option in below)}" if below else where
    return f"{file}: {key}" if key else file


def _is_section(key: str, known: set[str]) -> bool:
    return any(name.startswith(f"{key}.") for name in known)


def _put_preset(raw: dict[str, object], options: dict[str, object]) -> None:
    """Puts the preset of the chosen retriever under what its section says."""
    section, presets = raw.get("retriever", {}), raw.get("retriever_presets", {})
    if isinstance(section, dict) and isinstance(presets, dict):
        model = options.get("retriever.model", section.get("model", RetrieverConfig.model))
        preset = presets.get(model) if isinstance(model, str) else None
        if isinstance(preset, dict):
            raw["retriever"] = {**preset, **section}


def _put(raw: dict[str, object], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = raw.get(section)
        if not isinstance(inner, dict):
            inner = raw[section] = {}
        raw = inner
    raw[last] = value


def _value(key: str, text: str) -> object:
    """The value of an option: its text verbatim if the key is of type text, else read as YAML."""
    check_text(text, f"--{key}")
    kinds = _kinds(hint_of(key, Config))
    if kinds <= {str, type(None)}:
        return None if text == "null" and type(None) in kinds else text
    return read_yaml(text, f"--{key}: {shown(text)}")


def _kinds(hint: Any) -> set[type]:
    """The plain types that a hint allows; those of a literal are those of its values."""
    if typing.get_origin(hint) is Literal:
        return {type(value) for value in typing.get_args(hint)}
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return set().union(*map(_kinds, typing.get_args(hint)))
    return {typing.get_origin(hint) or hint}
