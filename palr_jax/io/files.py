"""Writing files so that a reader never meets half of one."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from palr_jax.errors import UserError, reason
from palr_jax.io.paths import delete, in_bucket
from palr_jax.parallel.processes import is_leader

_PIECE_BYTES = 16_000_000


@contextmanager
def replacing(path: Path, by_all: bool = False) -> Iterator[Path]:
    """Yields a temporary path on disk, which becomes `path` once the block has succeeded.

    It lies beside `path` and is renamed, or is copied into the bucket, where objects appear whole.
    Of several processes, which all come here, the leader alone writes; with `by_all` every one
    does, each a file of its own.
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
    """Puts the name of the file into errors of the system that come without one (a full disk)."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Writes behind what stands in a file, or begins it."""
    if in_bucket(path):  # objects do not grow
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(before + text, encoding="utf-8")
        return
    with _naming(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def reading(path: Path, mend: str = "delete it and run again") -> Iterator[None]:
    """Turns all that the reading of a damaged file raises into one line.

    Args:
        path: of the file.
        mend: what to do about one that is damaged.

    Raises:
        UserError: the block failed, in whatever way.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): see to it") from error
    except Exception as error:  # each library has its own, and wrong values raise what they will
        raise UserError(f"{path} cannot be read ({reason(error)}): {mend}") from error


def read_json(path: Path) -> Any:
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file of JSON objects, one a line.

    Raises:
        UserError: the file is missing, or a line is no JSON object.
    """
    with reading(path):
        # In bytes, lines end at line feeds alone, on disk and in a bucket.
        with path.open("rb") as file:
            lines = [json.loads(line) for line in file]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("a line is no JSON object")
        return lines


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed .npz, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub wants `allow_pickle` as well


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Reads an .npz.

    Args:
        path: of the file.
        names: of arrays that must be there.

    Raises:
        UserError: the file is missing, cut off or not an .npz, or lacks one of `names`.
    """
    with reading(path):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        return arrays


def fingerprint(value: Any) -> str:
    """A short hash of a JSON-like value, equal for equal values whatever their key order."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_new(folder: Path) -> None:
    """Checks that nothing stands where a folder is to be written.

    Raises:
        UserError: `folder` is a file, or a folder that holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and is not overwritten: name another place")


@contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`, renamed to it once the block has succeeded.

    A bucket knows no renaming of folders: there it is `folder` itself, emptied if the block fails.
    So that even a kill leaves nothing that passes for whole, write last what is read first.

    Raises:
        UserError: `folder` is a file, or a folder that holds something already.
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
