"""Stamps of files: size, time and hash, to detect changes.

Size and time are compared first; if they differ, the content is hashed, so a copy of a file counts
as unchanged. Objects in a bucket are never read for this: an input is unchanged if its size and
time are, an output is intact if its size is.

The stamp of a folder or pattern that names the parts of a table is that of their names; each part
has its own stamp.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from palr_jax.io.parts import has_parts, parts
from palr_jax.io.paths import in_bucket, objects_below


class Stamp(NamedTuple):
    """The identity of a file's content.

    Attributes:
        size: size in bytes; the number of parts.
        time: time of the last modification in nanoseconds; 0 for parts.
        digest: SHA-256 of the content; "" in a bucket. For parts, SHA-256 of their names.
    """

    size: int
    time: int
    digest: str

    @property
    def content(self) -> tuple[int, str | int]:
        """A key that is equal for equal content."""
        return self.size, self.digest or self.time


def take(path: Path) -> Stamp:
    """The stamp of a file, which is read once, or of the names of parts."""
    if has_parts(path):
        names = [str(part) for part in parts(path)]
        return Stamp(len(names), 0, hashlib.sha256("\n".join(names).encode()).hexdigest())
    return take_file(path)


def take_file(path: Path) -> Stamp:
    """The stamp of a file, which is read once; one request to a bucket."""
    size, time = _size_and_time(path)
    return Stamp(size, time, "" if in_bucket(path) else _digest(path))


def retake(path: Path, known: Stamp | None) -> Stamp:
    """As `take`, but does not read a file whose size and time are those of a known stamp."""
    if known is None or has_parts(path):
        return take(path)
    if _size_and_time(path) == (known.size, known.time):
        return known
    return take(path)


def can_take(path: Path) -> bool:
    """Whether a path is a file, or names parts of which there are some."""
    return path.is_file() or (has_parts(path) and bool(parts(path)))


def is_whole(path: Path, stamp: Stamp) -> bool:
    """Whether a file exists with the content of its stamp; one request to a bucket."""
    if in_bucket(path):
        try:
            return _size_and_time(path)[0] == stamp.size
        except (FileNotFoundError, IsADirectoryError):
            return False
    return path.is_file() and retake(path, stamp).content == stamp.content


def files_in(path: Path) -> list[Path]:
    """The files below a folder, without hidden ones; for a file, the file."""
    if in_bucket(path):
        below = objects_below(path)
    elif path.is_dir():
        walk = os.walk(path, followlinks=True)
        below = [Path(folder, name) for folder, _, names in walk for name in names]
    else:
        return [path] if path.is_file() else []
    return sorted(file for file in below if not _is_hidden(file.relative_to(path)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    if in_bucket(path):
        if found.is_directory:  # type: ignore[attr-defined]
            raise IsADirectoryError(str(path))
        return int(found.length), int(found.mtime)  # type: ignore[attr-defined]
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
