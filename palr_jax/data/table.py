"""Any pair of tables, interactions and items, as text (CSV and similar formats) or Parquet."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl

from palr_jax.data.columns import Column, ids, lists, texts, words_of
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.csv_file import CsvFile, open_csv
from palr_jax.data.log_rows import read_log
from palr_jax.data.parquet_file import open_parquet
from palr_jax.data.raw import RawTables, normal_items
from palr_jax.data.reading import Content, given, part_files, read_content
from palr_jax.data.table_file import TableFile
from palr_jax.data.table_parts import Rows, TableParts, read_rows
from palr_jax.errors import UserError, shown
from palr_jax.io.parts import has_parts

_TEXT = (".csv", ".tsv", ".inter", ".item")
_EXPECTED = "a .csv, .tsv, .inter or .item file, also with .gz, or a .parquet file"
_PARTS = f"{_EXPECTED}, or a folder or pattern of such files"
# RecBole appends the type of a column to its name: "item_id:token".
_RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
_OPTIONAL = ("timestamp", "categories")


def read_table(config: DataConfig) -> RawTables:
    """Reads `data.interactions` and `data.items`, with the columns that `data.columns` names.

    Raises:
        UserError: a file is not given, missing, damaged or empty, lacks a column, or holds an
            invalid value; names the file and the column or line.
    """
    interactions = _parts(config.interactions, "data.interactions")
    items = _parts(config.items, "data.items")
    return _read(interactions, items, config.columns)


def read_tables(interactions: Content, items: Content, columns: Columns) -> RawTables:
    """Reads the tables in two files; raises as `read_table` does."""
    return _read(
        _whole(interactions, f"set data.interactions to {_EXPECTED}"),
        _whole(items, f"set data.items to {_EXPECTED}"),
        columns,
    )


def read_columns(path: str, names: dict[str, str | None], key: str) -> dict[str, Column]:
    """The columns of these names, by role; a timestamp may be missing.

    Raises:
        UserError: the file is missing, damaged or empty, or lacks a column; `key` is what gave it.
    """
    file, mend = given(path, key, _EXPECTED), f"set {key} to {_EXPECTED}"
    _check_name(file, mend)
    return _columns(_rows(_whole(read_content(file, mend), mend), Columns(), names))


def _read(interactions: TableParts, items: TableParts, columns: Columns) -> RawTables:
    names = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    log_rows = _rows(interactions, columns, names)
    # Before the interactions, which may take minutes: a missing file or column is found at once.
    item_rows = _rows(items, columns, _names_of_items(columns))
    return RawTables(read_log(log_rows), _items(item_rows, columns), items.file)


def _names_of_items(columns: Columns) -> dict[str, str | None]:
    # A number in `item` is a column of the interactions, unless the title is a number as well.
    counted = columns.id is None and columns.item.isdecimal() and not columns.title.isdecimal()
    item = columns.id or ("item" if counted else columns.item)
    return {"id": item, "title": columns.title, "categories": columns.categories}


def _items(rows: Rows, columns: Columns) -> pl.DataFrame:
    found = _columns(rows)
    item, title = ids(found["id"]), texts(found["title"])
    if "categories" not in found:
        return normal_items(item, title, pl.Series([[]] * len(item), dtype=pl.List(pl.String)))
    categories = lists(found["categories"], columns.category_separator)
    if found["categories"].name.endswith(":token_seq"):  # spaces separate its tokens
        categories = words_of(categories.list.join(" "))
    return normal_items(item, title, categories)


def _parts(path: str | None, key: str) -> TableParts:
    file, mend = given(path, key, _PARTS), f"set {key} to {_PARTS}"
    if not file.suffix and not has_parts(file) and not file.exists():
        raise UserError(f"{file} is missing: {mend}")
    parts = part_files(file, mend)
    for part in parts:
        _check_name(part, mend)
    return TableParts(file, [partial(read_content, part, mend) for part in parts], mend)


def _whole(content: Content, mend: str) -> TableParts:
    return TableParts(content.file, [lambda: content], mend)


def _check_name(file: Path, mend: str) -> None:
    if not file.name.removesuffix(".gz").endswith(_TEXT) and file.suffix != ".parquet":
        raise UserError(f"{file} has an unknown extension: {mend}")


def _open(content: Content, columns: Columns, names: dict[str, str | None]) -> TableFile:
    if content.file.suffix == ".parquet":
        return open_parquet(content)

    def fits(header: list[str]) -> bool:
        found = _layout(header, names, is_named=False).places
        return all(found[role] for role in found if role not in _OPTIONAL)

    return open_csv(content, columns.separator, fits)


def _rows(parts: TableParts, columns: Columns, names: dict[str, str | None]) -> Rows:
    """The columns of these names, without optional ones that the table lacks.

    Raises:
        UserError: a column is missing or ambiguous; also as `read_rows`.
    """
    first = _open(parts.contents[0](), columns, names)
    if isinstance(first, CsvFile):
        columns = replace(columns, separator=first.separator)
    layout = _layout(first.header, names, first.is_named)
    places = _places(first, names, layout)
    return read_rows(
        parts, lambda content: _open(content, columns, names), first, places, layout.has_header
    )


def _columns(rows: Rows) -> dict[str, Column]:
    """The columns of a table by role, in memory."""
    frame = pl.concat(list(rows.pieces))
    return {
        role: Column(frame[role], name, rows.table, rows.where) for role, name in rows.names.items()
    }


@dataclass(frozen=True)
class _Layout:
    """The columns of a table by their roles.

    Attributes:
        has_header: whether the first record holds names.
        places: role → indices of all columns that match the role's name or number.
    """

    has_header: bool
    places: dict[str, list[int]]


def _layout(header: list[str], names: dict[str, str | None], is_named: bool) -> _Layout:
    """Finds columns by name, else by number from 1.

    If all given columns are numbers, the first record is one of values, unless the table is known
    to have names (`is_named`).
    """
    asked = {role: name for role, name in names.items() if name is not None}
    named = {role: _named(header, name) for role, name in asked.items()}
    counted = {role: _counted(header, name) for role, name in asked.items()}
    has_header = is_named or any(
        not counted[role] and (named[role] or role not in _OPTIONAL) for role in asked
    )
    places = {role: (has_header and named[role]) or counted[role] for role in asked}
    return _Layout(has_header, places)


def _named(header: list[str], name: str) -> list[int]:
    typed = {name, *(f"{name}:{kind}" for kind in _RECBOLE_TYPES)}
    found = [place for place, column in enumerate(header) if column in typed]
    return found or [place for place, column in enumerate(header) if column.strip(" ") in typed]


def _counted(header: list[str], name: str) -> list[int]:
    if not (name.isdecimal() and len(name) < 6 and 1 <= int(name) <= len(header)):
        return []
    return [int(name) - 1]


def _places(table: TableFile, names: dict[str, str | None], layout: _Layout) -> dict[str, int]:
    """The index of each role's column, without optional roles that no column can match."""
    places = {}
    for role, found in layout.places.items():
        if len(found) > 1:
            several = f"{len(found)} columns {shown(names[role])}"
            raise UserError(f"{table.file} has {several}: set data.columns.{role} to a number")
        if found:
            places[role] = found[0]
    for role in [role for role in layout.places if role not in places]:
        if role not in _OPTIONAL or len(set(places.values())) < len(table.header):
            there = ", ".join(map(shown, table.header[:20])) or "none"
            null = ", or to null if there is none" if role in _OPTIONAL else ""
            raise UserError(
                f"{table.file} has no column {shown(names[role])}, only {there}: "
                f"set data.columns.{role}{null}"
            )
    return places
