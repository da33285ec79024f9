"""Was this made from these inputs?

A result is reused only if it was made from the inputs that are now wanted. The inputs are named
JSON-like values. They are kept with the result, whole or as a fingerprint:

- stages.json: the fingerprint of a stage's settings, and the stamps of its files by path;
- a trained retriever: whole, in its settings.json;
- candidates to learn from, and title vectors: the fingerprint is the name of their folder or file;
- the parts of a table of all users: whole, in their job.json.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from palr_jax.io.files import read_json, reading, replacing
from palr_jax.json_types import JsonObject

Inputs = Mapping[str, object]


def fingerprint(value: object) -> str:
    """A short hash of a JSON-like value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed(wanted: Inputs, found: Inputs) -> list[str]:
    """The names of the wanted inputs whose value differs; other names of `found` do not count."""
    return [name for name, value in wanted.items() if found.get(name) != value]


def recorded(file: Path) -> JsonObject | None:
    """The inputs that `claim` wrote; None if the file is missing.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return None
    value = read_json(file)
    with reading(file):
        return dict(value)


def claim(file: Path, inputs: Inputs, by_all: bool = False) -> Inputs:
    """Records the inputs of a result that is about to be made, unless a record exists.

    Args:
        file: of the record.
        inputs: named values that JSON can represent.
        by_all: see `replacing`.

    Returns:
        The recorded inputs; the caller compares them by `changed`.

    Raises:
        UserError: the file is damaged.
    """
    found = recorded(file)
    if found is not None:
        return found
    with replacing(file, by_all) as temporary:
        text = json.dumps(inputs, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    return inputs
