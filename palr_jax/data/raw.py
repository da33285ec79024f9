"""What every source is read into, and how to read its files so that an error names the line."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from palr_jax.data.catalog import normal_title
from palr_jax.errors import UserError
from palr_jax.paths import path_of

# The files that `readable` has opened since `noting_files` began.
_noted: ContextVar[list[Path] | None] = ContextVar("noted", default=None)
ITEMS_SCHEMA: dict[str, pl.DataType] = {
    "item": pl.String(),
    "title": pl.String(),
    "categories": pl.List(pl.String()),
}


@dataclass(frozen=True)
class RawTables:
    """A source as it was read, both tables in the order of their files.

    Attributes:
        interactions: user: str, item: str, timestamp: int64 or float64 (unit of the source).
        items: item: str, title: str ("" if there is none), categories: list[str]; `ITEMS_SCHEMA`.
        items_file: the file of the items, for errors that concern them.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    items_file: Path


def items_table(
    ids: Sequence[str], titles: Sequence[str], categories: Sequence[Sequence[str]]
) -> pl.DataFrame:
    """The `items` of `RawTables`: texts in normal form, categories neither empty nor repeated."""
    names = [list(dict.fromkeys(filter(None, map(normal_title, row)))) for row in categories]
    columns = {"item": ids, "title": list(map(normal_title, titles)), "categories": names}
    return pl.DataFrame(columns, schema=ITEMS_SCHEMA)


def timestamps(column: pl.Series, where: Callable[[int], str]) -> pl.Series:
    """The column (no nulls) as int64, or as float64 if it holds fractions.

    Args:
        column: text, numbers or dates.
        where: says for a row index where that row stands, for the error.

    Raises:
        UserError: a value is not a finite number.
    """
    if not (column.dtype.is_float() or column.dtype.is_decimal()):
        whole = column.cast(pl.Int64, strict=False)
        if not whole.null_count():
            return whole
    real = column.cast(pl.Float64, strict=False)
    wrong = ~real.is_finite().fill_null(False)
    if wrong.any():
        row = wrong.to_list().index(True)
        raise UserError(f"{where(row)}: the {column.name} {column[row]!r} is not a number")
    return real


def given(value: str | None, key: str, expected: str) -> Path:
    """The path that the config gives under `key`.

    Raises:
        UserError: the config gives none.
    """
    if value is None:
        raise UserError(f"{key} is not given: set it to {expected}")
    return path_of(value).expanduser()


@contextmanager
def noting_files() -> Iterator[list[Path]]:
    """Yields a list that gets every file which is read with `readable` while the block runs."""
    files: list[Path] = []
    token = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(token)


@contextmanager
def readable(path: Path, mend: str) -> Iterator[None]:
    """Turns the errors of reading `path` into a `UserError`; `mend` says what to give instead."""
    try:
        yield
        files = _noted.get()
        if files is not None and path.is_file():
            files.append(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): fetch it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {mend}") from None


def read_text(path: Path, mend: str) -> str:
    """The UTF-8 text of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: the file is missing, cut off, empty or not UTF-8.
    """
    with readable(path, mend):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    if not data.strip():
        raise UserError(f"{path} is empty: {mend}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data.count(b"\n", 0, error.start) + 1) from None


def numbered_lines(path: Path, mend: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers; .gz is decompressed.

    Raises:
        UserError: the file is missing, cut off, empty or not UTF-8.
    """
    empty = True
    with readable(path, mend), path.open("rb") as file:
        lines = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            empty = False
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise _not_utf8(path, number) from None
            yield number, text
    if empty:
        raise UserError(f"{path} is empty: {mend}")


def _not_utf8(path: Path, line: int) -> UserError:
    return UserError(f"{path}, line {line}: not UTF-8: convert the file to UTF-8")
