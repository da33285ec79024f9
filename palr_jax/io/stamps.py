"""Stamps of files: their size, time and hash, by which a later reader knows them again.

Size and time are compared first, and the content is hashed where they differ: a copy of a file is
the same file. Objects in a bucket are never read for this: an input is the same if its size and
time are, an output is whole if its size is.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from palr_jax.io.paths import in_bucket


class Stamp(NamedTuple):
    """What a file was.

    Attributes:
        size: in bytes.
        time: of its last change, in nanoseconds.
        digest: SHA-256 of its content; "" in a bucket.
    """

    size: int
    time: int
    digest: str

    @property
    def content(self) -> tuple[int, str | int]:
        """Equal for equal content."""
        return self.size, self.digest or self.time


def take(path: Path) -> Stamp:
    """The stamp of a file, which is read once."""
    size, time = _size_and_time(path)
    return Stamp(size, time, "" if in_bucket(path) else _digest(path))


def retake(path: Path, known: Stamp | None) -> Stamp:
    """The stamp of a file, which is not read if it has the size and the time of a known one."""
    if known is not None and _size_and_time(path) == (known.size, known.time):
        return known
    return take(path)


def is_whole(path: Path, stamp: Stamp) -> bool:
    """Whether a file is there, with the content that it was written with."""
    if not path.is_file():
        return False
    if in_bucket(path):
        return _size_and_time(path)[0] == stamp.size
    return retake(path, stamp).content == stamp.content


def files_in(path: Path) -> list[Path]:
    """The files in a folder and in the folders in it, hidden ones left out; a file is itself."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(_walk(path))


def _walk(folder: Path) -> Iterator[Path]:
    for child in folder.iterdir():
        if child.name.startswith("."):
            continue
        if child.is_dir():
            yield from _walk(child)
        else:
            yield child


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    if in_bucket(path):
        return int(found.length), int(found.mtime)  # type: ignore[attr-defined]
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
