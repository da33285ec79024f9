"""Tables that are missing, damaged or not what they should be: one line that names the fault."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palr_jax.data import reading
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.table import read_table
from tests.data.conftest import Complaint, log_of
from tests.data.tables import ITEMS, LOG, rewrite


@pytest.mark.parametrize("key", ["interactions", "items"])
def test_not_given(config: DataConfig, complaint: Complaint, key: str) -> None:
    nothing: dict[str, Any] = {key: None}
    message = complaint(read_table, replace(config, **nothing))
    assert message.startswith(f"data.{key} is not given")


@pytest.mark.parametrize("key", ["interactions", "items"])
def test_missing_and_unknown_extension(
    config: DataConfig, complaint: Complaint, tmp_path: Path, key: str
) -> None:
    for name, problem in [
        ("no.csv", "is missing"),
        ("no.parquet", "is missing"),
        ("a.xlsx", "unknown extension"),
    ]:
        path = str(tmp_path / name)
        given: dict[str, Any] = {key: path}
        message = complaint(read_table, replace(config, **given))
        assert path in message
        assert problem in message
        assert f"set data.{key} to a .csv, .tsv, .inter or .item file" in message


@pytest.mark.parametrize(
    "key, header",
    [("interactions", "user,item,timestamp\n"), ("items", "item,title,categories\n")],
)
def test_only_a_header(config: DataConfig, complaint: Complaint, key: str, header: str) -> None:
    path = getattr(config, key)
    rewrite(path, header)
    assert complaint(read_table, config).startswith(f"{path} holds no rows: set data.{key} to")


@pytest.mark.parametrize("gone", ["user", "item", "timestamp"])
def test_missing_column_of_interactions(
    config: DataConfig, complaint: Complaint, gone: str
) -> None:
    rewrite(config.interactions, LOG.replace(gone, "other", 1))
    message = complaint(read_table, config)
    assert f"{config.interactions} has no column {gone!r}" in message
    assert "'other'" in message
    assert f"set data.columns.{gone}" in message


@pytest.mark.parametrize(
    "gone, key", [("item", "id"), ("title", "title"), ("categories", "categories")]
)
def test_missing_column_of_items(
    config: DataConfig, complaint: Complaint, gone: str, key: str
) -> None:
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
def test_a_bad_line_is_named(
    config: DataConfig, complaint: Complaint, line: str, problem: str
) -> None:
    # The blank line and the line break in quotes both count as lines.
    rows = ["user,item,timestamp,note", "ann,007,5,", "bob,1,3,", "ann,1,3,", ""]
    rows += ['ann,1,4,"two\nlines"', f"{line},x", "bob,007,9,"]
    rewrite(config.interactions, "\n".join(rows))
    message = complaint(read_table, config)
    assert message.startswith(f"{config.interactions}, line 8: {problem}")


def test_a_short_table_sets_no_limit_to_the_fields_of_the_next(
    config: DataConfig, complaint: Complaint, tmp_path: Path
) -> None:
    path = tmp_path / "short.csv"
    rewrite(str(path), "a,b,1\nc\n")
    columns = Columns(user="1", item="2", timestamp="3")
    short = replace(config, interactions=str(path), columns=columns)
    assert "line 2: 1 fields where" in complaint(read_table, short)
    assert len(log_of(read_table(config))) == 3


def test_a_bad_line_of_items_is_named(config: DataConfig, complaint: Complaint) -> None:
    rewrite(config.items, ITEMS + "3,three\n")
    assert complaint(read_table, config).startswith(f"{config.items}, line 4: 2 fields")
    rewrite(config.items, ITEMS + ",three,x\n")
    assert complaint(read_table, config).startswith(f"{config.items}, line 4: no value")


def test_an_unclosed_quote_in_a_long_file(config: DataConfig, complaint: Complaint) -> None:
    rewrite(config.interactions, f'{LOG}cid,"1,2\n' + "bob,007,9\n" * 30_000)
    assert complaint(read_table, config).startswith(f"{config.interactions}, line 5: ")


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_a_row_of_parquet_without_a_value_is_named(
    config: DataConfig, complaint: Complaint, tmp_path: Path, column: str
) -> None:
    log: dict[str, list[Any]] = {"user": ["a", "b"], "item": ["x", "y"], "timestamp": [1, 2]}
    log[column][1] = None
    path = tmp_path / "log.parquet"
    pl.DataFrame(log).write_parquet(path)
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert message.startswith(f"{path}, row 2: no value in column {column!r}")


@pytest.mark.parametrize("kept", [1, 30, -5])
def test_parquet_cut_off(
    config: DataConfig, complaint: Complaint, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": ["a"], "item": ["x"], "timestamp": [1]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:kept])
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert f"{path} is not a complete Parquet file" in message


def test_a_parquet_file_of_more_rows_than_bytes_is_refused(
    config: DataConfig, complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_ALWAYS_BYTES", 1_000_000)
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1], "item": [1]}).select(
        pl.all().repeat_by(1_000_000).explode()
    ).write_parquet(path)
    assert path.stat().st_size < 10_000
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert "unpacks to more than 100 times its size" in message


def test_a_panic_of_polars_is_one_line(
    config: DataConfig,
    complaint: Complaint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def panic(*_: object) -> None:
        os.write(2, b"thread '<unnamed>' panicked at")
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(pl, "scan_parquet", panic)
    path = Path(str(config.interactions)).with_suffix(".parquet")
    path.write_bytes(b"PAR1")
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert f"{path} is not a complete Parquet file (called `Option" in message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "log, problem",
    [
        ({"user": [1.0, float("nan")]}, "row 2: no value in column 'user'"),
        ({"user": [[1], [2]]}, "column 'user' is of type List(Int64), not texts or whole"),
        ({"item": [{"a": 1}, {"a": 2}]}, "column 'item' is of type Struct({'a': Int64}), not"),
        ({"timestamp": [True, False]}, "column 'timestamp' is of type Boolean, not numbers or"),
        ({"item": ["1", "x" * 50_000]}, "row 2: the id 'xxx"),
    ],
)
def test_parquet_of_other_types_is_refused(
    config: DataConfig,
    complaint: Complaint,
    tmp_path: Path,
    log: dict[str, list[Any]],
    problem: str,
) -> None:
    path = tmp_path / "log.parquet"
    whole = {"user": ["a", "b"], "item": ["1", "2"], "timestamp": [1, 2]}
    pl.DataFrame(whole | log).write_parquet(path)
    message = complaint(read_table, replace(config, interactions=str(path)))
    assert message.startswith(str(path))
    assert problem in message


@pytest.mark.parametrize(
    "items, problem",
    [
        (
            {"categories": [{"name": "a"}]},
            "column 'categories' is of type Struct({'name': String})",
        ),
        ({"categories": [[{"name": "a"}]]}, "column 'categories' is of type List(Struct("),
        ({"title": [["a"]]}, "column 'title' is of type List(String), not texts"),
        ({"title": [b"a"]}, "column 'title' is of type Binary, not texts"),
    ],
)
def test_parquet_items_of_other_types_are_refused(
    config: DataConfig,
    complaint: Complaint,
    tmp_path: Path,
    items: dict[str, list[Any]],
    problem: str,
) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item": ["1"], "title": ["a"], "categories": ["b"]} | items).write_parquet(path)
    assert problem in complaint(read_table, replace(config, items=str(path)))


def test_another_encoding_is_named(config: DataConfig, complaint: Complaint) -> None:
    Path(str(config.items)).write_bytes(ITEMS.encode() + b"3,L\xe9on,x\n")
    assert complaint(read_table, config).startswith(f"{config.items}, line 4: not UTF-8")


def test_a_title_of_a_megabyte_is_read_and_a_bad_line_behind_it_named(
    config: DataConfig, complaint: Complaint
) -> None:
    rewrite(config.items, f'{ITEMS}3,"{"x" * 1_000_000}",a\n')
    assert len(read_table(config).items["title"][2]) == 1_000_000
    rewrite(config.items, f'{ITEMS}3,"{"x" * 1_000_000}",a\n,four,b\n')
    assert complaint(read_table, config).startswith(f"{config.items}, line 5: no value")
