"""A file that holds a table, in whatever format."""

from abc import ABC, abstractmethod
from collections.abc import Callable
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
    def read(
        self, places: list[int], has_header: bool
    ) -> tuple[pl.DataFrame, Callable[[int], str]]:
        """The columns at these indices, and a function from row to location.

        Args:
            places: indices of columns.
            has_header: whether the first record holds names.

        Raises:
            UserError: the file is damaged; names the line or row.
        """
