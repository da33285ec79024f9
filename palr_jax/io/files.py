"""Atomic writes of files, and reads whose errors are one line."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from palr_jax.errors import UserError, reason
from palr_jax.io.paths import delete, in_bucket
from palr_jax.json_types import Json, JsonObject
from palr_jax.parallel.processes import is_leader

_PIECE_BYTES = 16_000_000


@contextmanager
def replacing(path: Path, by_all: bool = False) -> Iterator[Path]:
    """Yields a temporary path on disk, which becomes `path` if the block succeeds.

    On disk it is in the same folder and is renamed; into a bucket it is copied, because objects
    appear atomically. All processes must call this, but only the leader writes; with `by_all` each
    process writes its own file.
    """
    writes = by_all or is_leader()
    if in_bucket(path) or not writes:
        with TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            if writes:
                with temporary.open("rb") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, _PIECE_BYTES)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Appends UTF-8 text to a file, which is created if missing."""
    if in_bucket(path):  # objects cannot be appended to
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(before + text, encoding="utf-8")
        return
    with _naming(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def reading(path: Path, mend: str = "delete it and run again") -> Iterator[None]:
    """Turns every exception of the block into a `UserError` about the file.

    Args:
        path: the file.
        mend: the remedy for a damaged file.

    Raises:
        UserError: the block raised an exception.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): fix that") from error
    except Exception as error:  # libraries raise their own types, and wrong values any type
        raise UserError(f"{path} cannot be read ({reason(error)}): {mend}") from error


def read_json(path: Path) -> Json:
    """Reads JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    with reading(path):
        data = path.read_bytes()
        try:
            return json.loads(data)
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON ({error}): delete it and run again"
            ) from None


def read_lines(path: Path) -> list[JsonObject]:
    """Reads a file of JSON objects, one per line.

    Raises:
        UserError: the file is missing, or a line is not a JSON object.
    """
    with reading(path):
        # In binary mode, only line feeds end lines, on disk and in a bucket.
        with path.open("rb") as file:
            lines = [json.loads(line) for line in file]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("a line is not a JSON object")
        return lines


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed .npz atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub requires `allow_pickle`


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Reads an .npz.

    Args:
        path: the file.
        names: names of required arrays.

    Raises:
        UserError: the file is missing, truncated or not an .npz, or lacks one of `names`.
    """
    with reading(path):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        return arrays


def require_new(folder: Path) -> None:
    """Checks that a folder does not exist or is empty.

    Raises:
        UserError: `folder` is a file or a non-empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not overwritten: choose another path")


@contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `folder`, renamed to it if the block succeeds.

    Buckets cannot rename folders: there it is `folder` itself, deleted if the block fails. Write
    the file that readers open first last, so that after a kill no partial folder looks complete.

    Raises:
        UserError: `folder` is a file or a non-empty folder.
    """
    require_new(folder)
    if in_bucket(folder):
        try:
            yield folder
        except BaseException:
            delete(folder)
            raise
        return
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
