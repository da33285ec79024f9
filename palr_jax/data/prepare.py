"""From a source to a catalog and a split: read, drop repeats, k-core, leave-one-out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    encode,
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
        split: the leave-one-out split over the items of `catalog`.
        catalog: the items that remain after the k-core, in the order of the items file.
    """

    split: Split
    catalog: Catalog

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
    unique = without_repeats(by_time(encode(raw.interactions)))
    core = compact(unique.take(kcore_mask(unique.user_N, unique.item_N, config.min_count)))
    say(
        f"{config.source}: {len(raw.interactions):,} interactions, of which "
        f"{len(raw.interactions) - len(unique):,} are repeats and {len(unique) - len(core):,} fall "
        f"to the {config.min_count}-core: {len(core.user_ids):,} users, "
        f"{len(core.item_ids):,} items, {len(core):,} interactions remain"
    )
    _check_users(core, config)
    log, catalog = _with_catalog(core, raw)
    if not any(catalog.categories):
        say(f"{raw.items_file}: no item has a category, so profiles have no keywords")
    histories = sequences(log)
    return Prepared(leave_one_out(histories, log.user_ids, len(catalog)), catalog)


def save(prepared: Prepared, directory: Path) -> None:
    """Writes `split.npz` and `catalog.parquet` into `directory`, each atomically."""
    split, catalog = prepared.split, prepared.catalog
    columns = {
        "item": catalog.item_ids.tolist(),
        "title": catalog.titles,
        "categories": catalog.categories,
    }
    split_file, catalog_file = files(directory)
    with replacing(catalog_file) as temporary:
        pl.DataFrame(columns, schema=ITEMS_SCHEMA).write_parquet(temporary)
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
    catalog = _load_catalog(catalog_file)
    if len(catalog) != split.num_items:
        raise UserError(f"{directory} holds files of two runs: run `palr prepare`")
    return Prepared(split, catalog)


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


def _load_catalog(path: Path) -> Catalog:
    with reading(path, "run `palr prepare`"):
        frame = pl.read_parquet(path.read_bytes()).select(
            pl.col(name).cast(kind) for name, kind in ITEMS_SCHEMA.items()
        )
        if any(frame.null_count().row(0)):
            raise ValueError("a value is missing")
        ids, titles, categories = (frame[name].to_list() for name in ITEMS_SCHEMA)
    return Catalog(np.array(ids, np.str_), tuple(titles), tuple(map(tuple, categories)))


def _with_catalog(log: InteractionLog, raw: RawTables) -> tuple[InteractionLog, Catalog]:
    """The catalog of the log's items, and the log with items in its order."""
    codes = pl.DataFrame({"item": log.item_ids.tolist(), "code": np.arange(len(log.item_ids))})
    rows = raw.items.join(codes, on="item", how="inner", maintain_order="left")
    titled = rows.filter(pl.col("title") != "")
    missing = codes.join(titled, on="item", how="anti", maintain_order="left")["item"]
    if len(missing):
        raise UserError(
            f"{raw.items_file}: item {missing[0]!r} has interactions but no title "
            f"({len(missing)} such items): an item without a title cannot be recommended, add it"
        )
    repeated = rows.filter(pl.col("item").is_duplicated())["item"]
    if len(repeated):
        raise UserError(f"{raw.items_file}: item {repeated[0]!r} has two rows: delete one")
    index_of_code = np.empty(len(codes), np.int32)
    index_of_code[rows["code"].to_numpy()] = np.arange(len(rows))
    ids = rows["item"].to_list()
    catalog = Catalog(
        item_ids=np.array(ids, np.str_),
        titles=unique_titles(rows["title"].to_list(), ids),
        categories=tuple(map(tuple, rows["categories"].to_list())),
    )
    ordered = replace(log, item_N=index_of_code[log.item_N], item_ids=catalog.item_ids)
    return ordered, catalog


def _check_users(log: InteractionLog, config: DataConfig) -> None:
    users = len(log.user_ids)
    if users < config.min_users:
        raise UserError(
            f"{users} users and {len(log.item_ids)} items remain after the {config.min_count}-core "
            f"of {config.source}, fewer than data.min_users = {config.min_users}: "
            "lower data.min_count or give more interactions"
        )
