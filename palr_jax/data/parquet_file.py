"""A table as Parquet."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl

from palr_jax.data.reading import Content, check_size
from palr_jax.data.table_file import TableFile
from palr_jax.errors import UserError

_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
_ROW_BYTES = 8


@dataclass(frozen=True)
class ParquetFile(TableFile):
    """The bytes of a Parquet file; its header holds the names of the columns."""

    is_named = True

    def read(
        self, places: list[int], has_header: bool
    ) -> tuple[pl.DataFrame, Callable[[int], str]]:
        """The columns at these indices with stored types, and a function from row to location.

        `has_header` is ignored: columns of Parquet always have names.

        Raises:
            UserError: the file is damaged, or claims more rows than a file of its size can hold.
        """
        with _parsing(self.content):
            # By index, because Polars reads names such as "*" as patterns.
            frame = pl.read_parquet(io.BytesIO(self.content.data), columns=places)
        return frame, lambda row: f"{self.file}, row {row + 1}"


def open_parquet(content: Content) -> ParquetFile:
    """Reads the names of the columns and checks the number of rows.

    Raises:
        UserError: as `ParquetFile.read`.
    """
    with _parsing(content):
        table = pl.scan_parquet(io.BytesIO(content.data))
        names = table.collect_schema().names()
        rows = int(table.select(pl.len()).collect().item())
    check_size(content.file, rows * _ROW_BYTES * len(names), len(content.data))
    return ParquetFile(content, names)


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
