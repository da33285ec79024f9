"""The `data` section of a config: which interactions, and how few are too few."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Source = Literal["ml-latest-small", "ml-1m", "amazon-2014", "table"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the tables that `source: table` reads.

    Attributes:
        user: id of the user, in the interactions.
        item: id of the item, under the same name in the interactions and the items.
        timestamp: a number that grows with time (or, in Parquet, a date), in the interactions.
        title: text of the item, in the items.
        categories: categories of the item, in the items: a text joined by `category_separator`
            or, in Parquet, a list of texts.
        category_separator: what stands between two categories in a text.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    title: str = "title"
    categories: str = "categories"
    category_separator: Annotated[str, Field(min_length=1)] = "|"


@dataclass(frozen=True)
class DataConfig:
    """Where the interactions come from and which of them are kept.

    Attributes:
        source: `ml-latest-small` comes with the package, the others are read from your files.
        path: for `ml-1m` the official zip or its folder; for `amazon-2014` a folder that holds
            `reviews_X_5.json.gz` and `meta_X.json.gz` (or both as plain `.json`).
        interactions: the file of interactions: for `table` a .csv, .csv.gz or .parquet, for
            `amazon-2014` the reviews, instead of `path`.
        items: the file of items: for `table` as above, for `amazon-2014` the metadata.
        columns: names of the columns, for `table`.
        min_count: k of the k-core: every user and every item has at least so many interactions.
            Leave-one-out needs three.
        min_users: the fewest users that must remain after the k-core.
    """

    source: Source = "ml-latest-small"
    path: str | None = None
    interactions: str | None = None
    items: str | None = None
    columns: Columns = Columns()
    min_count: Annotated[int, Field(ge=3)] = 5
    min_users: Annotated[int, Field(ge=1)] = 10
