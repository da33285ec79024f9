import gzip
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.table import read_table

LOG = "user,item,timestamp\nann,007,5\nbob,1,3\nann,1,3\n"
ITEMS = 'item,title,categories\n1,"Nails, red",Hair|Nails\n007,"5"" pot",\n'


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    return DataConfig(
        source="table",
        interactions=str(tmp_path / "log.csv"),
        items=str(tmp_path / "items.csv"),
    )


def rewrite(path: str, text: str) -> None:
    Path(path).write_text(text)


def test_csv(config: DataConfig) -> None:
    tables = read_table(config)
    assert tables.interactions.rows() == [("ann", "007", 5), ("bob", "1", 3), ("ann", "1", 3)]
    assert tables.items.rows() == [("1", "Nails, red", ["Hair", "Nails"]), ("007", '5" pot', [])]
    assert str(tables.items_file) == config.items


def test_gzip_and_windows_line_ends_and_byte_order_mark(config, tmp_path) -> None:
    data = ("\ufeff" + LOG.replace("\n", "\r\n") + "\r\n\r\n").encode()
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(data))
    other = replace(config, interactions=str(tmp_path / "log.csv.gz"))
    assert read_table(other).interactions.equals(read_table(config).interactions)


def test_columns_are_named_by_the_config(config) -> None:
    rewrite(config.interactions, "when,who,rating,what\n5,ann,4.0,007\n3,bob,,1\n")
    rewrite(config.items, "name,what,tags\nNails,1,a;b\nPot,007,c\n")
    columns = Columns("who", "what", "when", "name", "tags", ";")
    tables = read_table(replace(config, columns=columns))
    assert tables.interactions.rows() == [("ann", "007", 5), ("bob", "1", 3)]
    assert tables.items.rows() == [("1", "Nails", ["a", "b"]), ("007", "Pot", ["c"])]


def test_parquet(config, tmp_path) -> None:
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
    assert tables.interactions["user"].to_list() == ["8", "9"]
    first, second = tables.interactions["timestamp"].to_list()
    assert first - second == 24 * 3600 * 1_000_000  # Polars counts microseconds
    assert tables.items.rows() == [("1", "a b", ["x", "y"]), ("2", "", [])]


def test_blank_lines_are_passed_over(config) -> None:
    rewrite(config.interactions, LOG.replace("bob", "\nbob"))
    assert len(read_table(config).interactions) == 3


@pytest.mark.parametrize("key", ["interactions", "items"])
def test_not_given(config, complaint, key) -> None:
    message = complaint(read_table, replace(config, **{key: None}))
    assert message.startswith(f"data.{key} is not given")


@pytest.mark.parametrize("key", ["interactions", "items"])
def test_missing_and_unknown_extension(config, complaint, tmp_path, key) -> None:
    for name, problem in [
        ("no.csv", "is missing"),
        ("no.parquet", "is missing"),
        ("a.xlsx", "unknown extension"),
    ]:
        path = str(tmp_path / name)
        message = complaint(read_table, replace(config, **{key: path}))
        assert path in message
        assert problem in message
        assert f"set data.{key} to a .csv, .tsv, .inter or .item file" in message


@pytest.mark.parametrize(
    "key, header",
    [("interactions", "user,item,timestamp\n"), ("items", "item,title,categories\n")],
)
def test_only_a_header(config, complaint, key, header) -> None:
    path = getattr(config, key)
    rewrite(path, header)
    assert complaint(read_table, config).startswith(f"{path} holds no rows: set data.{key} to")


@pytest.mark.parametrize("gone", ["user", "item", "timestamp"])
def test_missing_column_of_interactions(config, complaint, gone) -> None:
    rewrite(config.interactions, LOG.replace(gone, "other", 1))
    message = complaint(read_table, config)
    assert f"{config.interactions} has no column {gone!r}" in message
    assert "'other'" in message
    assert f"set data.columns.{gone}" in message


@pytest.mark.parametrize(
    "gone, key", [("item", "id"), ("title", "title"), ("categories", "categories")]
)
def test_missing_column_of_items(config, complaint, gone, key) -> None:
    rewrite(config.items, ITEMS.replace(gone, "other", 1))
    message = complaint(read_table, config)
    assert f"{config.items} has no column {gone!r}" in message
    assert f"set data.columns.{key}" in message


@pytest.mark.parametrize(
    "line, problem",
    [
        ("cid,1", "3 fields where the first line has 4"),
        ("cid", "2 fields where the first line has 4"),
        ("cid,1,2,3", "5 fields where the first line has 4"),
        (",1,2", "no value in column 'user'"),
        ("cid,,2", "no value in column 'item'"),
        ("cid,1,", "no value in column 'timestamp'"),
        ('cid,1,""', "no value in column 'timestamp'"),
        ("cid,1,soon", "the timestamp 'soon' is not a number"),
        ('cid,"1,2', "not valid CSV"),
        ('cid,5" pot,2', "a double quote out of place"),
    ],
)
def test_a_bad_line_is_named(config, complaint, line, problem) -> None:
    # The blank line and the line break in quotes both count as lines.
    rows = ["user,item,timestamp,note", "ann,007,5,", "bob,1,3,", "ann,1,3,", ""]
    rows += ['ann,1,4,"two\nlines"', f"{line},x", "bob,007,9,"]
    rewrite(config.interactions, "\n".join(rows))
    message = complaint(read_table, config)
    assert message.startswith(f"{config.interactions}, line 8: {problem}")


def test_a_bad_line_of_items_is_named(config, complaint) -> None:
    rewrite(config.items, ITEMS + "3,three\n")
    assert complaint(read_table, config).startswith(f"{config.items}, line 4: 2 fields")
    rewrite(config.items, ITEMS + ",three,x\n")
    assert complaint(read_table, config).startswith(f"{config.items}, line 4: no value")


def test_an_unclosed_quote_in_a_long_file(config, complaint) -> None:
    rewrite(config.interactions, f'{LOG}cid,"1,2\n' + "bob,007,9\n" * 30_000)
    assert complaint(read_table, config).startswith(f"{config.interactions}, line 5: ")


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_a_row_of_parquet_without_a_value_is_named(config, complaint, tmp_path, column) -> None:
    log = {"user": ["a", "b"], "item": ["x", "y"], "timestamp": [1, 2]}
    log[column][1] = None
    path = tmp_path / "log.parquet"
    pl.DataFrame(log).write_parquet(path)
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert message.startswith(f"{path}, row 2: no value in column {column!r}")


@pytest.mark.parametrize("kept", [1, 30, -5])
def test_parquet_cut_off(config, complaint, tmp_path, kept) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": ["a"], "item": ["x"], "timestamp": [1]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:kept])
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert f"{path} is not a complete Parquet file" in message
