"""Reads the files of a source, with bounded memory and errors that name file and line."""

import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from palr_jax.errors import UserError
from palr_jax.io.parts import has_parts, parts
from palr_jax.io.paths import path_of

# Maximum compression ratio of a table; a higher one indicates a decompression bomb.
_RATIO = 100
_ALWAYS_BYTES = 256_000_000
_LINE_BYTES = 16_000_000
_PIECE_BYTES = 4_000_000
_DAMAGED = (
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
)
_PARQUET = b"PAR1"
# The files read in the current `noting_files` block.
_noted: ContextVar[list[Path] | None] = ContextVar("noted", default=None)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Content:
    """The unpacked content of a file.

    Attributes:
        file: the name of the file in errors; for a zip member, the zip's path and the member's.
        data: the bytes, without a byte order mark; not blank.
    """

    file: Path
    data: bytes


@contextmanager
def noting_files() -> Iterator[list[Path]]:
    """Yields a list of the source files that are read in the block, and the folders and patterns
    that name them.
    """
    files: list[Path] = []
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)


def given(value: str | None, key: str, expected: str) -> Path:
    """The path of config value `key`.

    Raises:
        UserError: the value is None.
    """
    if value is None:
        raise UserError(f"{key} is not given: set it to {expected}")
    return path_of(value)


def part_files(path: Path, mend: str) -> list[Path]:
    """The file `path`, or the files in the folder or of the pattern that it names, sorted by name.

    Raises:
        UserError: a folder or pattern has no files; `mend` ends the error.
    """
    if not has_parts(path):
        return [path]
    with _reading(path, mend):
        found = parts(path)
        if not found:
            problem = "holds no files" if path.is_dir() else "matches no files"
            raise UserError(f"{path} {problem} (names that begin with . or _ do not count): {mend}")
    return found


def read_content(path: Path, mend: str) -> Content:
    """The bytes of a file, decompressed if its name ends in .gz; `mend` ends the errors.

    Raises:
        UserError: the file is missing, truncated or empty, is named .parquet but is not one, holds
            a line of over 16 MB, or unpacks to more than a table can hold.
    """
    is_text, data, line_bytes = path.suffix != ".parquet", io.BytesIO(), 0
    with _reading(path, mend), path.open("rb") as file:
        unpacked = _unpacked(path, file)
        while piece := unpacked.read(_PIECE_BYTES):
            line_bytes = 0 if b"\n" in piece else line_bytes + len(piece)
            if is_text and line_bytes > _LINE_BYTES:
                problem = f"holds a line longer than {_LINE_BYTES // 1_000_000} MB"
                raise UserError(f"{path} {problem}, which no table does: {mend}")
            if not is_text and not data.tell() and not piece.startswith(_PARQUET):
                raise UserError(f"{path} is not a complete Parquet file: {mend}")
            data.write(piece)
    return _content(path, data.getvalue(), mend)


def unzip(path: Path, name: str, mend: str) -> Content:
    """The bytes of the single file of this name in a zip, in any folder; `mend` ends the errors.

    Raises:
        UserError: the zip is missing or damaged, or the file is not in it, is encrypted, has an
            unknown compression, is empty, or unpacks to more than a table can hold.
    """
    with _reading(path, mend), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if Path(member.filename).name == name]
        if len(members) != 1:
            there = "several files" if members else "no file"
            raise UserError(f"{path} holds {there} named {name}: {mend}")
        (member,) = members
        if member.flag_bits & 1:
            raise UserError(f"{path}: {member.filename} is encrypted: unpack it and {mend}")
        check_size(path, member.file_size, file.seek(0, io.SEEK_END))
        data = archive.read(member)
    return _content(path / member.filename, data, mend)


def numbered_lines(path: Path, mend: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers; .gz is decompressed.

    Raises:
        UserError: the file is missing, truncated, empty or not UTF-8, or a line is over 16 MB long.
    """
    empty = True
    with _reading(path, mend), path.open("rb") as file:
        unpacked = _unpacked(path, file)
        number = 0
        while line := unpacked.readline(_LINE_BYTES + 1):
            number += 1
            if len(line) > _LINE_BYTES:
                problem = f"longer than {_LINE_BYTES // 1_000_000} MB"
                raise UserError(f"{path}, line {number}: {problem}: {mend}")
            if not line.strip():
                continue
            empty = False
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise not_utf8(path, number) from None
            yield number, text
    if empty:
        raise UserError(f"{path} is empty: {mend}")


def not_utf8(path: Path, line: int) -> UserError:
    """The error for a line in another encoding."""
    return UserError(f"{path}, line {line}: not UTF-8: convert the file to UTF-8")


def check_size(path: Path, unpacked: int, packed: int) -> None:
    """Checks that the unpacked size is plausible for a table of `packed` bytes.

    Raises:
        UserError: it is too large.
    """
    if unpacked > max(_ALWAYS_BYTES, _RATIO * packed):
        raise UserError(
            f"{path} unpacks to more than {_RATIO} times its size, which no table does: "
            "fetch it again"
        )


@contextmanager
def _reading(path: Path, mend: str) -> Iterator[None]:
    """Turns the errors of reading `path` into a `UserError`, and records that it was read."""
    try:
        yield
        files = _noted.get()
        if files is not None and path not in files:
            files.append(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged or cut off ({error}): fetch it again") from None
    except NotImplementedError as error:  # zip files: unknown compression or version
        raise UserError(f"{path} cannot be unpacked ({error}): unpack it and {mend}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {mend}") from None


def _content(file: Path, data: bytes, mend: str) -> Content:
    if data.startswith(_UTF16):
        raise UserError(f"{file} is UTF-16: convert the file to UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data or data.isspace():
        raise UserError(f"{file} is empty: {mend}")
    return Content(file, data)


def _unpacked(path: Path, file: BinaryIO) -> io.BufferedReader:
    """The stream of the file's unpacked content."""
    if path.suffix != ".gz":
        return io.BufferedReader(_Watched(path, file, file))
    return io.BufferedReader(_Watched(path, gzip.GzipFile(fileobj=file), file), 1_000_000)


class _Watched(io.RawIOBase):
    """A stream that raises a `UserError` once it has unpacked more than a table can hold."""

    def __init__(self, path: Path, stream: BinaryIO | gzip.GzipFile, packed: BinaryIO) -> None:
        self._path, self._stream, self._packed = path, stream, packed
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._bytes += len(data)
        if self._stream is not self._packed:
            check_size(self._path, self._bytes, self._packed.tell())
        buffer[: len(data)] = data
        return len(data)
