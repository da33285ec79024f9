"""The `data` section of a config: which interactions are read, and which are kept."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from palr_jax.errors import shown

Source = Literal[
    "ml-latest-small",
    "ml-100k",
    "ml-1m",
    "ml-10m",
    "ml-20m",
    "ml-25m",
    "ml-32m",
    "amazon-2014",
    "amazon-2018",
    "amazon-2023",
    "table",
]


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _separator(value: object) -> object:
    text = "\t" if value == "\\t" else value
    if isinstance(text, str) and not (len(text) == 1 and text.isascii() and text not in '"\r\n\0'):
        raise ValueError(
            f"{shown(value)} is not one ASCII character, other than a double quote or a line end"
        )
    return text


# A name, or a number from 1, which YAML reads as an integer.
Column = Annotated[str, Field(min_length=1), BeforeValidator(_as_text)]
Separator = Annotated[str, BeforeValidator(_separator)]


@dataclass(frozen=True)
class Columns:
    """Columns of the tables that `source: table` reads: names, or numbers from 1.

    A text file whose columns are all given as numbers has no header line.

    Attributes:
        user: user id, in the interactions.
        item: item id, in the interactions and, unless `id` is set, in the items.
        timestamp: time of an interaction, an increasing number or a date; null if the file has no
            such column and its rows are in chronological order.
        title: text of an item, in the items.
        categories: categories of an item, in the items: a text joined by `category_separator` or,
            in Parquet, a list of texts; null if the file has no such column.
        category_separator: separator between the categories in a text.
        id: item id in the items, if its column is named differently from the one in the
            interactions.
        separator: separator between the fields of a text file, one character; null means tab in
            .tsv, .inter and .item, and is detected from the first lines of a .csv.
    """

    user: Column = "user"
    item: Column = "item"
    timestamp: Column | None = "timestamp"
    title: Column = "title"
    categories: Column | None = "categories"
    category_separator: Annotated[str, Field(min_length=1)] = "|"
    id: Column | None = None
    separator: Separator | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which interactions are read, and which of them are kept.

    Attributes:
        source: data set: ml-latest-small comes with the package, the others are read from your
            files; table reads any two tables.
        path: location of the files: for ml-... the official zip or its folder, for amazon-... a
            folder with the two files of a category, reviews and metadata, as JSON lines or gzip of
            them.
        interactions: file of interactions: for table a .csv, .tsv, .inter or .parquet, or a folder
            or pattern (log/*.parquet) of such parts, for amazon-... the reviews, instead of `path`.
        items: file of items: for table any of the same endings or .item, or parts of them, for
            amazon-... the metadata.
        columns: names of the columns, for table.
        min_count: k of the k-core: fewest interactions of every user and every item that are kept.
            Leave-one-out needs three.
        min_users: fewest users that must remain after the k-core.
    """

    source: Source = "ml-latest-small"
    path: str | None = None
    interactions: str | None = None
    items: str | None = None
    columns: Columns = Columns()
    min_count: Annotated[int, Field(ge=3, le=1_000_000)] = 5
    min_users: Annotated[int, Field(ge=1, le=1_000_000_000)] = 10
