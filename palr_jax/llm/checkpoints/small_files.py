"""The small files of a checkpoint (JSON, tokenizers), which anybody may have written.

Whatever a file holds, reading it gives its content or one line that says what is wrong with it.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from palr_jax.errors import UserError

# Tokenizers of 260,000 tokens take 35 MB.
_MOST_BYTES = 200_000_000
_POINTER = b"version https://git-lfs.github.com/spec/"

Model = TypeVar("Model", bound=BaseModel)


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuses what Git LFS leaves in the place of a large file, by the first bytes of the file.

    Raises:
        UserError: it is such a pointer.
    """
    if start.startswith(_POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` where it was "
            "cloned, or download the file"
        )


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UserError: it is missing, cannot be read, is far too large, or is a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            content: bytes = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: copy it again") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}): copy it again") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path} holds more than {_MOST_BYTES:,} bytes: it is another kind of file")
    refuse_pointer(path, content)
    return content


def parse_json(content: bytes, where: str) -> Any:
    """The value that a text describes; `where` stands in errors.

    Raises:
        UserError: it is not JSON, is nested too deeply, or holds half a surrogate pair.
    """
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # such halves cannot be written or compared
    except RecursionError:
        raise UserError(f"{where} is not valid JSON (nested too deeply): copy it again") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}): copy it again") from None
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: as `read_bytes` and `parse_json`; the file holds something other than an object.
    """
    value = parse_json(read_bytes(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: copy it again")
    return value


def validated(model: type[Model], value: Any, where: str) -> Model:
    """A value of JSON as a typed model; `where` stands in errors.

    Raises:
        UserError: a key is missing or has a value of another kind.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(complaint(error, where)) from None


def complaint(error: ValidationError, where: str) -> str:
    """The first thing that is wrong, as a line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where} lacks the key {key!r}: copy it again"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where} holds a value of the wrong kind: {key}{': ' if key else ''}{message}"
