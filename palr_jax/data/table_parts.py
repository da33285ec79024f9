"""A table in one file or in several parts, read a piece at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import polars as pl

from palr_jax.data.reading import Content
from palr_jax.data.table_file import TableFile
from palr_jax.errors import UserError, shown

_SHOWN = 20


@dataclass(frozen=True)
class TableParts:
    """The files of a table, not read yet.

    Attributes:
        file: the name of the table in errors: of its file, or of the folder or pattern of parts.
        contents: read each part, in the order of their rows.
        mend: ends the error for a table without rows.
    """

    file: Path
    contents: Sequence[Callable[[], Content]]
    mend: str


@dataclass(frozen=True)
class Rows:
    """Columns of a table, all rows in the order of the parts.

    Attributes:
        table: the name of the table in errors.
        names: role of a column → its name in the files.
        pieces: the rows, some at a time, with columns named by role; can be read once.
        where: row → its location, such as "FILE, line 7"; only of rows that were read.
    """

    table: str
    names: dict[str, str]
    pieces: Iterator[pl.DataFrame]
    where: Callable[[int], str]


def read_rows(
    parts: TableParts,
    opened: Callable[[Content], TableFile],
    first: TableFile,
    places: dict[str, int],
    has_header: bool,
) -> Rows:
    """The columns at `places` of all parts.

    Args:
        parts: the files.
        opened: opens a part after the first.
        first: the first part.
        places: role of a column → its index.
        has_header: whether the first record of every part holds names.

    Raises:
        UserError: while the pieces are read, if a part is damaged or has other columns or types
            than the first.
    """
    first_file, header, heights = first.file, first.header, [0]
    names = {role: header[at] if has_header else str(at + 1) for role, at in places.items()}
    order = sorted(set(places.values()))

    def pieces(table: TableFile) -> Iterator[pl.DataFrame]:
        kinds: dict[str, pl.DataType] = {}
        for content in (None, *parts.contents[1:]):
            if content is not None:
                del table  # before the next part is read
                table = opened(content())
                _check_header(table, header, first_file, has_header)
                heights.append(0)
            for frame in table.pieces(order, has_header):
                heights[-1] += frame.height
                # By index: Polars reads names such as "*" as patterns.
                found = {role: frame.to_series(order.index(at)) for role, at in places.items()}
                piece = pl.DataFrame([column.alias(role) for role, column in found.items()])
                kinds = kinds or dict(piece.schema)
                _check_types(table.file, piece, kinds, names, first_file)
                yield piece
        if not any(heights):
            raise UserError(f"{parts.file} holds no rows: {parts.mend}")

    def where(row: int) -> str:
        ends = list(accumulate(heights))
        number = next(part for part, end in enumerate(ends) if row < end)
        table = opened(parts.contents[number]())
        return table.where(row - ends[number] + heights[number], has_header)

    return Rows(str(parts.file), names, pieces(first), where)


def _check_header(table: TableFile, header: list[str], first: Path, has_header: bool) -> None:
    """Raises a UserError if a part has other columns than the first."""
    if has_header and table.header != header:
        there, here = (", ".join(map(shown, names[:_SHOWN])) for names in (header, table.header))
        differ = f"columns {here}, but {first} has {there}"
    elif len(table.header) != len(header):
        differ = f"{len(table.header)} columns, but {first} has {len(header)}"
    else:
        return
    raise UserError(f"{table.file} has the {differ}: write all parts with the same columns")


def _check_types(
    file: Path,
    piece: pl.DataFrame,
    kinds: dict[str, pl.DataType],
    names: dict[str, str],
    first: Path,
) -> None:
    """Raises a UserError if a column has another type than in the first part."""
    for role, kind in piece.schema.items():
        if kind != kinds[role]:
            raise UserError(
                f"{file}: column {names[role]!r} is of type {kind}, but in {first} of type "
                f"{kinds[role]}: write all parts with the same types"
            )
