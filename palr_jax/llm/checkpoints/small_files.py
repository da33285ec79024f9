"""The small files of a checkpoint (JSON, tokenizers), which are untrusted input.

Reading a file with any content either succeeds or raises a one-line error.
"""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from palr_jax.errors import UserError
from palr_jax.json_types import Json, JsonObject

# A tokenizer of 260,000 tokens takes 35 MB.
_MAX_BYTES = 200_000_000
_POINTER = b"version https://git-lfs.github.com/spec/"

Model = TypeVar("Model", bound=BaseModel)


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuses a Git LFS pointer, recognised by the first bytes of the file.

    Raises:
        UserError: the file is a pointer.
    """
    if start.startswith(_POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in its "
            "clone, or download the file"
        )


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UserError: it is missing, cannot be read, is far too large, or is a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            content: bytes = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: copy it again") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}): copy it again") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path} holds more than {_MAX_BYTES:,} bytes, too many for such a file")
    refuse_pointer(path, content)
    return content


def parse_json(content: bytes, where: str) -> Json:
    """Parses JSON; `where` names the file in errors.

    Raises:
        UserError: it is not JSON, is nested too deeply, or contains a lone surrogate.
    """
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # fails on lone surrogates
    except RecursionError:
        raise UserError(f"{where} is not valid JSON (nested too deeply): copy it again") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}): copy it again") from None
    return value


def read_object(path: Path) -> JsonObject:
    """The object in a JSON file.

    Raises:
        UserError: as `read_bytes` and `parse_json`; the file does not hold an object.
    """
    value = parse_json(read_bytes(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: copy it again")
    return value


def validated(model: type[Model], value: object, where: str) -> Model:
    """Validates parsed JSON against a typed model; `where` names the file in errors.

    Raises:
        UserError: a key is missing or its value has the wrong type.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(complaint(error, where)) from None


def complaint(error: ValidationError, where: str) -> str:
    """The first validation error, in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where} lacks the key {key!r}: copy it again"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where} holds a value of the wrong kind: {key}{': ' if key else ''}{message}"
