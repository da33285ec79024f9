"""From a source to a catalog and a split: read, drop repeats, k-core, leave-one-out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from palr_jax.data.amazon import read_amazon
from palr_jax.data.catalog import Catalog, unique_titles
from palr_jax.data.config import DataConfig, Source
from palr_jax.data.interactions import (
    InteractionLog,
    by_time,
    compact,
    sequences,
    without_repeats,
)
from palr_jax.data.kcore import kcore_mask
from palr_jax.data.movielens import (
    read_csv_archive,
    read_dat_archive,
    read_ml_100k,
    read_ml_latest_small,
)
from palr_jax.data.raw import ITEMS_SCHEMA, RawTables
from palr_jax.data.split import Split, leave_one_out
from palr_jax.data.table import read_table
from palr_jax.errors import UserError
from palr_jax.io.files import read_arrays, reading, replacing, write_arrays
from palr_jax.io.progress import say
from palr_jax.ragged import Ragged

READERS: dict[Source, Callable[[DataConfig], RawTables]] = {
    "ml-latest-small": read_ml_latest_small,
    "ml-100k": read_ml_100k,
    "ml-1m": read_dat_archive,
    "ml-10m": read_dat_archive,
    "ml-20m": read_csv_archive,
    "ml-25m": read_csv_archive,
    "ml-32m": read_csv_archive,
    "amazon-2014": read_amazon,
    "amazon-2018": read_amazon,
    "amazon-2023": read_amazon,
    "table": read_table,
}


@dataclass(frozen=True)
class Prepared:
    """The data that later stages use.

    Attributes:
        split: the leave-one-out split over the items.
        items: the items that remain after the k-core, in the order of the items file, with unique
            titles; `ITEMS_SCHEMA`.
    """

    split: Split
    items: pl.DataFrame

    @cached_property
    def catalog(self) -> Catalog:
        """The items, as Python strings."""
        ids, titles, categories = (self.items[name].to_list() for name in ITEMS_SCHEMA)
        return Catalog(np.array(ids, np.str_), tuple(titles), tuple(map(tuple, categories)))

    @property
    def num_interactions(self) -> int:
        """Number of interactions, including held-out ones."""
        return len(self.split.train.values_N) + 2 * self.split.num_users


def prepare(config: DataConfig) -> Prepared:
    """Reads a source and splits it (paper, sections 3.1.1 and 3.1.2).

    Interactions are sorted by time, ties in file order. The first of repeated (user, item) pairs is
    kept. Then users and items with fewer than `min_count` interactions are removed repeatedly.
    Items are in the order of the items file, users in the order of their first interaction.

    Raises:
        UserError: the source cannot be read, too few users remain, or a remaining item has no title
            or several rows.
    """
    raw = READERS[config.source](config)
    log, table, file = raw.interactions, raw.items, raw.items_file
    del raw  # each step frees the log of the one before
    log = _core(log, config)
    log, items = _with_items(log, table, file)
    if not items["categories"].list.len().sum():
        say(f"{file}: no item has a category, so profiles have no keywords")
    histories = sequences(log)
    return Prepared(leave_one_out(histories, log.user_ids, len(items)), items)


def save(prepared: Prepared, directory: Path) -> None:
    """Writes `split.npz` and `catalog.parquet` into `directory`, each atomically."""
    split_file, catalog_file = files(directory)
    with replacing(catalog_file) as temporary:
        prepared.items.write_parquet(temporary)
    split = prepared.split
    write_arrays(
        split_file,
        train_N=split.train.values_N,
        train_offsets_U1=split.train.offsets_R1,
        validation_U=split.validation_U,
        test_U=split.test_U,
        user_ids=split.user_ids,
        num_items=np.array(split.num_items),
    )


def files(directory: Path) -> list[Path]:
    """The files that `save` writes: the split's and the catalog's."""
    return [directory / "split.npz", directory / "catalog.parquet"]


def load(directory: Path) -> Prepared:
    """Reads what `save` wrote.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    path, catalog_file = files(directory)
    arrays = read_arrays(
        path, "train_N", "train_offsets_U1", "validation_U", "test_U", "user_ids", "num_items"
    )
    with reading(path, "run `palr prepare`"):
        split = Split(
            train=Ragged.checked(arrays["train_N"], arrays["train_offsets_U1"]),
            validation_U=arrays["validation_U"],
            test_U=arrays["test_U"],
            user_ids=arrays["user_ids"].astype(np.str_),
            num_items=int(arrays["num_items"]),
        )
        _check_split(split)
    items = _load_items(catalog_file)
    if len(items) != split.num_items:
        raise UserError(f"{directory} holds files of two runs: run `palr prepare`")
    return Prepared(split, items)


def _check_split(split: Split) -> None:
    """Raises ValueError if the arrays of a split are inconsistent."""
    for array in (split.train.values_N, split.validation_U, split.test_U):
        if array.dtype.kind != "i" or array.ndim != 1:
            raise ValueError(f"items are expected, not {array.dtype} {array.shape}")
        if len(array) and not 0 <= array.min() <= array.max() < split.num_items:
            raise ValueError(f"it names items beyond the {split.num_items} of the catalog")
    counts = {len(split.train), len(split.validation_U), len(split.test_U), len(split.user_ids)}
    if len(counts) > 1:
        raise ValueError("its arrays are of different users")


def _load_items(path: Path) -> pl.DataFrame:
    with reading(path, "run `palr prepare`"):
        frame = pl.read_parquet(path.read_bytes()).select(
            pl.col(name).cast(kind) for name, kind in ITEMS_SCHEMA.items()
        )
        if any(frame.null_count().row(0)):
            raise ValueError("a value is missing")
    return frame


def _core(log: InteractionLog, config: DataConfig) -> InteractionLog:
    """The interactions that remain, in the order of time; says how many, and where others went."""
    given = len(log)
    log = by_time(log)
    log = without_repeats(log)
    unique = len(log)
    log = compact(log.take(kcore_mask(log.user_N, log.item_N, config.min_count)))
    say(
        f"{config.source}: {given:,} interactions, of which {given - unique:,} are repeats and "
        f"{unique - len(log):,} fall to the {config.min_count}-core: {len(log.user_ids):,} users, "
        f"{len(log.item_ids):,} items, {len(log):,} interactions remain"
    )
    _check_users(log, config)
    return log


def _with_items(
    log: InteractionLog, items: pl.DataFrame, file: Path
) -> tuple[InteractionLog, pl.DataFrame]:
    """The log with items in the order of `items`, and those of them that it has."""
    codes = pl.DataFrame({"item": log.item_ids.tolist(), "code": np.arange(len(log.item_ids))})
    rows = items.join(codes, on="item", how="inner", maintain_order="left")
    titled = rows.filter(pl.col("title") != "")
    missing = codes.join(titled, on="item", how="anti", maintain_order="left")["item"]
    if len(missing):
        raise UserError(
            f"{file}: item {missing[0]!r} has interactions but no title "
            f"({len(missing)} such items): an item without a title cannot be recommended, add it"
        )
    repeated = rows.filter(pl.col("item").is_duplicated())["item"]
    if len(repeated):
        raise UserError(f"{file}: item {repeated[0]!r} has two rows: delete one")
    index_of_code = np.empty(len(codes), np.int32)
    code_I = rows["code"].to_numpy()
    index_of_code[code_I] = np.arange(len(rows))
    ordered = replace(log, item_N=index_of_code[log.item_N], item_ids=log.item_ids[code_I])
    return ordered, rows.with_columns(_unique_titles(rows)).select(*ITEMS_SCHEMA).rechunk()


def _unique_titles(items: pl.DataFrame) -> pl.Series:
    """The titles of items as `unique_titles` makes them."""
    titles = items["title"]
    # What `unique_titles` makes ends in "]", so a title of one item that does not stays its own.
    rows = (titles.is_duplicated() | titles.str.ends_with("]")).arg_true()
    some = items[rows]
    made = unique_titles(some["title"].to_list(), some["item"].to_list())
    return titles.clone().scatter(rows, pl.Series(made, dtype=pl.String))


def _check_users(log: InteractionLog, config: DataConfig) -> None:
    users = len(log.user_ids)
    if users < config.min_users:
        raise UserError(
            f"{users} users and {len(log.item_ids)} items remain after the {config.min_count}-core "
            f"of {config.source}, fewer than data.min_users = {config.min_users}: "
            "lower data.min_count or give more interactions"
        )
