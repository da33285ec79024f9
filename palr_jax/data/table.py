"""Any pair of tables, interactions and items, as text (CSV and similar formats) or Parquet."""

from dataclasses import dataclass

import polars as pl

from palr_jax.data.columns import Column, ids, lists, texts, timestamps
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.csv_file import open_csv
from palr_jax.data.parquet_file import open_parquet
from palr_jax.data.raw import RawTables, items_table
from palr_jax.data.reading import Content, given, read_content
from palr_jax.data.table_file import TableFile
from palr_jax.errors import UserError, shown
from palr_jax.io.progress import say

_TEXT = (".csv", ".tsv", ".inter", ".item")
_EXPECTED = "a .csv, .tsv, .inter or .item file, also with .gz, or a .parquet file"
# RecBole appends the type of a column to its name: "item_id:token".
_RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
_OPTIONAL = ("timestamp", "categories")


def read_table(config: DataConfig) -> RawTables:
    """Reads `data.interactions` and `data.items`, with the columns that `data.columns` names.

    Raises:
        UserError: a file is not given, missing, damaged or empty, lacks a column, or holds an
            invalid value; names the file and the column or line.
    """
    interactions = _content(config.interactions, "data.interactions")
    items = _content(config.items, "data.items")
    return read_tables(interactions, items, config.columns)


def read_tables(interactions: Content, items: Content, columns: Columns) -> RawTables:
    """Reads the tables in two files; raises as `read_table` does."""
    names = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    found = _columns(_open(interactions, columns, names), names, "data.interactions")
    user, item = ids(found["user"]), ids(found["item"])
    if "timestamp" in found:
        time = timestamps(found["timestamp"])
    else:
        say(f"{interactions.file}: without timestamps, rows are taken to be in the order of time")
        time = pl.int_range(len(user), dtype=pl.Int64, eager=True)
    log = pl.DataFrame({"user": user, "item": item, "timestamp": time})
    return RawTables(log, _items(items, columns), items.file)


def read_columns(path: str, names: dict[str, str | None], key: str) -> dict[str, Column]:
    """The columns of these names, by role; a timestamp may be missing.

    Raises:
        UserError: the file is missing, damaged or empty, or lacks a column; `key` is what gave it.
    """
    return _columns(_open(_content(path, key), Columns(), names), names, key)


def _items(content: Content, columns: Columns) -> pl.DataFrame:
    names = {"title": columns.title, "categories": columns.categories}
    # A number in `item` is a column of the interactions, unless the title is a number as well.
    counted = columns.id is None and columns.item.isdecimal() and not columns.title.isdecimal()
    names = {"id": columns.id or ("item" if counted else columns.item), **names}
    found = _columns(_open(content, columns, names), names, "data.items")
    item, title = ids(found["id"]).to_list(), texts(found["title"])
    if "categories" not in found:
        return items_table(item, title, [[] for _ in item])
    categories = lists(found["categories"], columns.category_separator)
    if found["categories"].name.endswith(":token_seq"):  # spaces separate its tokens
        categories = [" ".join(names).split() for names in categories]
    return items_table(item, title, categories)


def _content(path: str | None, key: str) -> Content:
    file, mend = given(path, key, _EXPECTED), f"set {key} to {_EXPECTED}"
    if not file.name.removesuffix(".gz").endswith(_TEXT) and file.suffix != ".parquet":
        raise UserError(f"{file} has an unknown extension: {mend}")
    return read_content(file, mend)


def _open(content: Content, columns: Columns, names: dict[str, str | None]) -> TableFile:
    if content.file.suffix == ".parquet":
        return open_parquet(content)

    def fits(header: list[str]) -> bool:
        found = _layout(header, names, is_named=False).places
        return all(found[role] for role in found if role not in _OPTIONAL)

    return open_csv(content, columns.separator, fits)


def _columns(table: TableFile, names: dict[str, str | None], key: str) -> dict[str, Column]:
    """The columns of these names, without optional ones that the table lacks.

    Raises:
        UserError: a column is missing or ambiguous, or the table has no rows.
    """
    layout = _layout(table.header, names, table.is_named)
    places = _places(table, names, layout)
    order = sorted(set(places.values()))
    frame, where = table.read(order, layout.has_header)
    if frame.is_empty():
        raise UserError(f"{table.file} holds no rows: set {key} to {_EXPECTED}")
    found = {}
    for role, place in places.items():
        name = table.header[place] if layout.has_header else str(place + 1)
        # Polars reads names such as "*" as patterns, in operations on one column as well.
        values = frame.to_series(order.index(place)).alias(role)
        found[role] = Column(values, name, str(table.file), where)
    return found


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
