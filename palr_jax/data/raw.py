"""The tables that every source is read into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from palr_jax.data.catalog import normal_title
from palr_jax.data.columns import NO_CATEGORY

ITEMS_SCHEMA: dict[str, pl.DataType] = {
    "item": pl.String(),
    "title": pl.String(),
    "categories": pl.List(pl.String()),
}


@dataclass(frozen=True)
class RawTables:
    """The tables of a source, both in file order.

    Attributes:
        interactions: user: str, item: str, timestamp: int64 or float64 (unit of the source).
        items: item: str, title: str ("" if missing), categories: list[str]; `ITEMS_SCHEMA`.
        items_file: the file of the items, for error messages.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    items_file: Path


def items_table(
    ids: Sequence[str], titles: Sequence[str], categories: Sequence[Sequence[str]]
) -> pl.DataFrame:
    """The `items` of `RawTables`: texts in normal form, categories neither empty nor repeated.

    Notations of a missing category, such as MovieLens' "(no genres listed)", are dropped.
    """
    columns = {
        "item": ids,
        "title": list(map(normal_title, titles)),
        "categories": [_categories(names) for names in categories],
    }
    return pl.DataFrame(columns, schema=ITEMS_SCHEMA)


def _categories(names: Sequence[str]) -> list[str]:
    known = (name for name in map(normal_title, names) if name.casefold() not in NO_CATEGORY)
    return list(dict.fromkeys(known))
