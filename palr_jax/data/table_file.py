"""A file that holds a table, in whatever format."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from palr_jax.data.reading import Content


@dataclass(frozen=True)
class TableFile(ABC):
    """A table whose columns are not read yet.

    Attributes:
        content: the file.
        header: the fields of its first record, names or values.
        is_named: whether these are known to be the names of the columns.
    """

    content: Content
    header: list[str]
    is_named: ClassVar[bool]

    @property
    def file(self) -> Path:
        """The name of the file in errors."""
        return self.content.file

    @abstractmethod
    def pieces(self, places: list[int], has_header: bool) -> Iterator[pl.DataFrame]:
        """The columns at these indices, some rows at a time.

        Args:
            places: indices of columns.
            has_header: whether the first record holds names.

        Raises:
            UserError: the file is damaged; names the line or row.
        """

    @abstractmethod
    def where(self, row: int, has_header: bool) -> str:
        """The location of a row, counted from 0, such as "FILE, line 7"."""
