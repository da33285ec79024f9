"""A table as Parquet."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

from palr_jax.data.reading import Content, check_size
from palr_jax.data.table_file import TableFile
from palr_jax.errors import UserError

_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
_ROW_BYTES = 8
# Rows that are in memory at a time.
_PIECE_ROWS = 4_000_000


@dataclass(frozen=True)
class ParquetFile(TableFile):
    """The bytes of a Parquet file; its header holds the names of the columns.

    Attributes:
        rows: the number of rows.
        empty: indices of the columns whose type allows no value but null.
    """

    rows: int
    empty: frozenset[int]
    is_named = True

    def pieces(self, places: list[int], has_header: bool) -> Iterator[pl.DataFrame]:
        """The columns at these indices with stored types, some rows at a time.

        `has_header` is ignored: columns of Parquet always have names.

        Raises:
            UserError: the file is damaged, or claims more rows than a file of its size can hold.
        """
        # Polars aborts the process on some damaged columns of nulls, so they are not decoded.
        full = [place for place in places if place not in self.empty]
        for start in range(0, max(self.rows, 1), _PIECE_ROWS):
            with _parsing(self.content):
                # By index, because Polars reads names such as "*" as patterns.
                table = pl.scan_parquet(io.BytesIO(self.content.data)).select(pl.nth(full))
                piece = table.slice(start, _PIECE_ROWS).collect(engine="streaming")
            height = len(piece) if full else min(_PIECE_ROWS, self.rows - start)
            decoded = iter(piece.get_columns())
            yield pl.DataFrame(
                [
                    pl.Series(self.header[place], [None], pl.Null).new_from_index(0, height)
                    if place in self.empty
                    else next(decoded)
                    for place in places
                ]
            )

    def where(self, row: int, has_header: bool) -> str:
        """The location of a row, counted from 1."""
        return f"{self.file}, row {row + 1}"


def open_parquet(content: Content) -> ParquetFile:
    """Reads the names of the columns and checks the number of rows.

    Raises:
        UserError: as `ParquetFile.pieces`.
    """
    with _parsing(content):
        table = pl.scan_parquet(io.BytesIO(content.data))
        schema = table.collect_schema()
        rows = int(table.select(pl.len()).collect().item())
    names, kinds = schema.names(), schema.dtypes()
    check_size(content.file, rows * _ROW_BYTES * len(names), len(content.data))
    empty = frozenset(place for place, kind in enumerate(kinds) if kind == pl.Null)
    return ParquetFile(content, names, rows, empty)


@contextmanager
def _parsing(content: Content) -> Iterator[None]:
    """Turns the errors of Polars, and panics of its Rust code, into a `UserError`.

    A panic prints a trace to standard error, so that is redirected to /dev/null in the block.
    """
    error: BaseException | None = None
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except _FAULTS as caught:
        error = caught
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    if error is not None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{content.file} is not a complete Parquet file ({reason}): write it again")
