"""The tables that every source is read into.

Titles stay in columns of Polars: a million Python strings of long titles take gigabytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from palr_jax.data.catalog import normal_title
from palr_jax.data.columns import NO_CATEGORY
from palr_jax.data.interactions import InteractionLog

ITEMS_SCHEMA: dict[str, pl.DataType] = {
    "item": pl.String(),
    "title": pl.String(),
    "categories": pl.List(pl.String()),
}


@dataclass(frozen=True)
class RawTables:
    """The tables of a source, both in file order.

    Attributes:
        interactions: the interactions, with timestamps in the unit of the source.
        items: item: str, title: str ("" if missing), categories: list[str]; `ITEMS_SCHEMA`.
        items_file: the file of the items, for error messages.
    """

    interactions: InteractionLog
    items: pl.DataFrame
    items_file: Path


def items_table(
    ids: Sequence[str], titles: Sequence[str], categories: Sequence[Sequence[str]]
) -> pl.DataFrame:
    """The `items` of `RawTables`: texts in normal form, categories neither empty nor repeated.

    Notations of a missing category, such as MovieLens' "(no genres listed)", are dropped.
    """
    names = [[normal_title(name) for name in row] for row in categories]
    return normal_items(
        pl.Series(ids, dtype=pl.String),
        pl.Series(list(map(normal_title, titles)), dtype=pl.String),
        pl.Series(names, dtype=ITEMS_SCHEMA["categories"]),
    )


def normal_items(ids: pl.Series, titles: pl.Series, categories: pl.Series) -> pl.DataFrame:
    """As `items_table`, of columns in memory that hold no nulls."""
    names = categories.explode().unique().drop_nulls()
    normal = _normal(names)
    known = [name.casefold() not in NO_CATEGORY for name in normal]
    kept = normal.zip_with(pl.Series(known, dtype=pl.Boolean), pl.Series([None], dtype=pl.String))
    named = pl.element().replace_strict(names, kept, return_dtype=pl.String).drop_nulls()
    columns = {"item": ids, "title": _normal(titles), "categories": categories}
    return pl.DataFrame(columns, schema=ITEMS_SCHEMA).with_columns(
        pl.col("categories").list.eval(named).list.unique(maintain_order=True)
    )


def _normal(texts: pl.Series) -> pl.Series:
    """The normal form of texts; one of printable ASCII with single spaces has it already."""
    other = (~texts.str.contains("^([!-~]+( [!-~]+)*)?$")).arg_true()
    made = texts.gather(other).map_elements(normal_title, return_dtype=pl.String)
    return texts.clone().scatter(other, made) if len(other) else texts
