"""Any pair of tables, interactions and items, as CSV or Parquet."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import polars as pl

from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.raw import (
    RawTables,
    given,
    items_table,
    read_text,
    readable,
    timestamps,
)
from palr_jax.errors import UserError

_EXPECTED = "a .csv, .csv.gz or .parquet file"


def read_table(config: DataConfig) -> RawTables:
    """Reads `data.interactions` and `data.items`, with the columns that `data.columns` names.

    Raises:
        UserError: a file is not given, missing, damaged or empty, lacks a column, or a row lacks
            a value or holds a timestamp that is no number; the file and the line are named.
    """
    interactions = given(config.interactions, "data.interactions", _EXPECTED)
    items = given(config.items, "data.items", _EXPECTED)
    return read_tables(interactions, items, config.columns)


def read_tables(interactions: Path, items: Path, columns: Columns) -> RawTables:
    """Reads a file of interactions and a file of items; raises as `read_table` does."""
    log = _read(interactions, "data.interactions")
    user = _filled(log, "user", columns.user).cast(pl.String).alias("user")
    item = _filled(log, "item", columns.item).cast(pl.String).alias("item")
    time = timestamps(_filled(log, "timestamp", columns.timestamp), log.where).alias("timestamp")
    described = _items(_read(items, "data.items"), columns)
    return RawTables(pl.DataFrame([user, item, time]), described, items)


def _items(table: "_Table", columns: Columns) -> pl.DataFrame:
    ids = _filled(table, "item", columns.item).cast(pl.String)
    titles = _column(table, "title", columns.title).cast(pl.String).fill_null("")
    categories = _column(table, "categories", columns.categories)
    if isinstance(categories.dtype, pl.List):
        rows = categories.cast(pl.List(pl.String)).to_list()
        lists = [[name or "" for name in names or []] for names in rows]
    else:
        texts = categories.cast(pl.String).fill_null("").to_list()
        lists = [text.split(columns.category_separator) for text in texts]
    return items_table(ids.to_list(), titles.to_list(), lists)


@dataclass(frozen=True)
class _Table:
    """A table with what it takes to say where a row stands; `text` is None for Parquet."""

    path: Path
    frame: pl.DataFrame
    text: str | None

    def where(self, row: int) -> str:
        if self.text is None:
            return f"{self.path}, row {row + 1}"
        line, _ = next(islice(_records(self.path, self.text), row + 1, None))
        return f"{self.path}, line {line}"


def _read(path: Path, key: str) -> _Table:
    mend = f"set {key} to {_EXPECTED}"
    if path.name.endswith((".csv", ".csv.gz")):
        table = _read_csv(path, mend)
    elif path.name.endswith(".parquet"):
        table = _read_parquet(path, mend)
    else:
        raise UserError(f"{path} has an unknown extension: {mend}")
    if table.frame.is_empty():
        raise UserError(f"{path} holds no rows: {mend}")
    return table


def _read_parquet(path: Path, mend: str) -> _Table:
    with readable(path, mend):
        data = path.read_bytes()
    try:
        return _Table(path, pl.read_parquet(io.BytesIO(data)), None)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a complete Parquet file ({reason}): {mend}") from None


def _read_csv(path: Path, mend: str) -> _Table:
    text = read_text(path, mend)
    try:
        # Every column as text: an id such as 007 stays what it is.
        frame = pl.read_csv(text.encode(), infer_schema=False)
    except pl.exceptions.PolarsError:
        _check_fields(path, text)
        raise _stray_quote(path, text) from None
    # Polars fills a short row with nulls, and gives a row of nulls for a blank line.
    if not (frame[:, -1].fill_null("") != "").all():
        _check_fields(path, text)
        frame = frame.filter(pl.any_horizontal((pl.all() != "").fill_null(False)))
    return _Table(path, frame, text)


def _check_fields(path: Path, text: str) -> None:
    records = _records(path, text)
    _, header = next(records)
    for line, fields in records:
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            raise UserError(f"{path}, line {line}: {problem}: mend or delete that line")


def _stray_quote(path: Path, text: str) -> UserError:
    """The error for what Polars refuses though all fields are there: a quote in a bare field."""
    lines = text.split("\n")
    starts = [line for line, _ in _records(path, text)] + [len(lines) + 1]
    for start, end in pairwise(starts):
        if "".join(lines[start - 1 : end - 1]).count('"') % 2:
            problem = "a double quote out of place: double it, and quote its whole field"
            return UserError(f"{path}, line {start}: {problem}")
    return UserError(f"{path} is not valid CSV: check its double quotes")


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The CSV records that are not blank, each with the number of the line it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if any(fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not valid CSV ({error})") from None


def _column(table: _Table, key: str, name: str) -> pl.Series:
    if name not in table.frame.columns:
        there = ", ".join(map(repr, table.frame.columns))
        raise UserError(
            f"{table.path} has no column {name!r}, only {there}: set data.columns.{key}"
        )
    return table.frame[name]


def _filled(table: _Table, key: str, name: str) -> pl.Series:
    column = _column(table, key, name)
    blank = column.is_null()
    if column.dtype == pl.String:
        blank |= column == ""
    if blank.any():
        row = blank.to_list().index(True)
        raise UserError(f"{table.where(row)}: no value in column {name!r}: mend or delete that row")
    return column
