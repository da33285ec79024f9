"""Tables of interactions and items, as CSV, TSV and Parquet."""

import gzip
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from palr_jax.data.catalog import normal_title
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.table import read_table
from tests.data.conftest import Complaint, log_of
from tests.data.tables import ITEMS, LOG, rewrite


def test_csv(config: DataConfig) -> None:
    tables = read_table(config)
    assert log_of(tables).rows() == [
        ("ann", "007", 5),
        ("bob", "1", 3),
        ("ann", "1", 3),
    ]
    assert tables.items.rows() == [("1", "Nails, red", ["Hair", "Nails"]), ("007", '5" pot', [])]
    assert str(tables.items_file) == config.items


def test_gzip_and_windows_line_ends_and_byte_order_mark(config: DataConfig, tmp_path: Path) -> None:
    data = ("\ufeff" + LOG.replace("\n", "\r\n") + "\r\n\r\n").encode()
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(data))
    other = replace(config, interactions=str(tmp_path / "log.csv.gz"))
    assert log_of(read_table(other)).equals(log_of(read_table(config)))


def test_parquet(config: DataConfig, tmp_path: Path) -> None:
    log = {
        "user": [8, 9],
        "item": [1, 2],
        "timestamp": [datetime(2014, 1, 2), datetime(2014, 1, 1)],
    }
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    items = {"item": [1, 2], "title": ["a\nb", None], "categories": [["x", "y"], None]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("log", "items")}
    tables = read_table(replace(config, interactions=files["log"], items=files["items"]))
    assert log_of(tables)["user"].to_list() == ["8", "9"]
    first, second = log_of(tables)["timestamp"].to_list()
    assert first - second == 24 * 3600 * 1_000_000  # Polars counts microseconds
    assert tables.items.rows() == [("1", "a b", ["x", "y"]), ("2", "", [])]


def test_blank_lines_are_passed_over(config: DataConfig) -> None:
    rewrite(config.interactions, LOG.replace("bob", "\nbob"))
    assert len(log_of(read_table(config))) == 3


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(config: DataConfig, separator: str) -> None:
    rewrite(config.interactions, LOG.replace(",", separator))
    rewrite(
        config.items,
        f'item{separator}title{separator}categories\n1{separator}"a{separator}b"{separator}x\n',
    )
    other = replace(config, columns=Columns(category_separator="/"))
    tables = read_table(other)
    assert log_of(tables).rows() == [
        ("ann", "007", 5),
        ("bob", "1", 3),
        ("ann", "1", 3),
    ]
    assert tables.items.rows() == [("1", normal_title(f"a{separator}b"), ["x"])]


def test_categories_do_not_pass_for_fields(config: DataConfig) -> None:
    rewrite(config.items, "item;title;categories\n1;Tom, Dick;a|b|c|d\n007;Up, up, up;b|c|d|e\n")
    assert read_table(config).items.rows() == [
        ("1", "Tom, Dick", ["a", "b", "c", "d"]),
        ("007", "Up, up, up", ["b", "c", "d", "e"]),
    ]


def test_a_given_separator_counts(config: DataConfig, complaint: Complaint) -> None:
    rewrite(config.interactions, LOG.replace(",", "\x01"))
    columns = Columns(separator="\x01")
    assert "has no column 'item', only 'item,title,categories'" in complaint(
        read_table, replace(config, columns=columns)
    )
    rewrite(config.items, ITEMS.replace(",", "\x01"))
    assert log_of(read_table(replace(config, columns=columns)))["user"][0] == "ann"


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_tsv(config: DataConfig, tmp_path: Path, name: str) -> None:
    data = LOG.replace(",", "\t").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    tables = read_table(replace(config, interactions=str(tmp_path / name)))
    assert log_of(tables).equals(log_of(read_table(config)))


def test_iso_dates(config: DataConfig) -> None:
    rewrite(config.interactions, "user,item,timestamp\na,1,2014-01-02\nb,1,2014-01-01T12:00:00Z\n")
    first, second = log_of(read_table(config))["timestamp"].to_list()
    assert first - second == 12 * 3600 * 1_000_000


def test_ids_that_were_stored_as_floats_meet_those_that_were_not(
    config: DataConfig, tmp_path: Path
) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [8.0], "item": [1.0], "timestamp": [1]}).write_parquet(path)
    tables = read_table(replace(config, interactions=str(path)))
    assert log_of(tables).rows() == [("8", "1", 1)]


def test_categories_in_an_array(config: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    array = pl.Series([["a", "b"]], dtype=pl.Array(pl.String, 2))
    pl.DataFrame({"item": [1], "title": ["t"], "categories": array}).write_parquet(path)
    assert read_table(replace(config, items=str(path))).items.rows() == [("1", "t", ["a", "b"])]


def test_titles_are_found_as_they_stand_in_the_file(config: DataConfig) -> None:
    rewrite(config.items, 'item,title,categories\n1,"Ame\u0301lie \n  (2001)",x\n')
    assert read_table(config).items["title"].to_list() == [normal_title("Ame\u0301lie \n  (2001)")]
