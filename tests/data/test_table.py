import gzip
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palr_jax.data import reading
from palr_jax.data.catalog import normal_title
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.table import read_table
from tests.data.conftest import Complaint, log_of

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


def rewrite(path: str | None, text: str) -> None:
    assert path is not None
    Path(path).write_text(text)


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


def test_columns_are_named_by_the_config(config: DataConfig) -> None:
    rewrite(config.interactions, "when,who,rating,what\n5,ann,4.0,007\n3,bob,,1\n")
    rewrite(config.items, "name,what,tags\nNails,1,a;b\nPot,007,c\n")
    columns = Columns("who", "what", "when", "name", "tags", ";")
    tables = read_table(replace(config, columns=columns))
    assert log_of(tables).rows() == [("ann", "007", 5), ("bob", "1", 3)]
    assert tables.items.rows() == [("1", "Nails", ["a", "b"]), ("007", "Pot", ["c"])]


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


@pytest.mark.parametrize("typed", [False, True])
def test_recbole_atomic_files(config: DataConfig, tmp_path: Path, typed: bool) -> None:
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nann\t7\t3\t5\nbob\t8\t2\t3.5\n"
    )
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"
        "7\tToy Story\tDrama War|Crime\n8\tM\t\n"
    )
    names = {"user": "user_id", "item": "item_id", "title": "movie_title", "categories": "class"}
    if typed:
        kinds = {"user": "token", "item": "token", "title": "token_seq", "categories": "token_seq"}
        names = {role: f"{name}:{kinds[role]}" for role, name in names.items()}
    interactions, items = str(tmp_path / "x.inter"), str(tmp_path / "x.item")
    given = replace(config, columns=Columns(**names), interactions=interactions, items=items)
    tables = read_table(given)
    assert log_of(tables).rows() == [("ann", "7", 5.0), ("bob", "8", 3.5)]
    assert tables.items.rows() == [("7", "Toy Story", ["Drama", "War", "Crime"]), ("8", "M", [])]


def test_columns_by_number_without_a_header(config: DataConfig) -> None:
    rewrite(config.interactions, LOG.split("\n", 1)[1])
    columns = Columns(user="1", item="2", timestamp="3")
    tables = read_table(replace(config, columns=columns))
    assert log_of(tables)["user"].to_list() == ["ann", "bob", "ann"]
    assert tables.items["item"].to_list() == ["1", "007"]
    rewrite(config.items, ITEMS.split("\n", 1)[1])
    both = replace(columns, id="1", title="2", categories="3")
    assert read_table(replace(config, columns=both)).items.equals(tables.items)


def test_values_do_not_pass_for_names_where_all_columns_are_numbers(config: DataConfig) -> None:
    rewrite(config.interactions, "2,1,3\n1,2,4\n")
    columns = Columns(user="1", item="2", timestamp="3")
    tables = read_table(replace(config, columns=columns))
    assert log_of(tables).rows() == [("2", "1", 3), ("1", "2", 4)]


def test_names_may_be_numbers(config: DataConfig) -> None:
    rewrite(config.interactions, "0,1,2\nann,7,3\n")
    columns = Columns(user="0", item="1", timestamp="2")
    tables = read_table(replace(config, columns=columns))
    assert log_of(tables).rows() == [("ann", "7", 3)]


def test_a_bad_line_without_a_header_is_named(config: DataConfig, complaint: Complaint) -> None:
    rewrite(config.interactions, "ann,007,5\nbob,,3\n")
    columns = Columns(user="1", item="2", timestamp="3")
    message = complaint(read_table, replace(config, columns=columns))
    assert message.startswith(f"{config.interactions}, line 2: no value in column '2'")


def test_a_number_counts_among_named_columns(config: DataConfig) -> None:
    tables = read_table(replace(config, columns=Columns(user="1")))
    assert log_of(tables).equals(log_of(read_table(config)))


@pytest.mark.parametrize("number", ["0", "4", "99999999999999999999"])
def test_a_number_of_no_column(config: DataConfig, complaint: Complaint, number: str) -> None:
    message = complaint(read_table, replace(config, columns=Columns(user=number)))
    assert f"has no column {number!r}, only 'user', 'item', 'timestamp'" in message


def test_a_name_of_two_columns(config: DataConfig, complaint: Complaint) -> None:
    rewrite(config.interactions, "user,user,item,timestamp\na,b,1,3\n")
    message = complaint(read_table, config)
    assert "has 2 columns 'user': set data.columns.user to a number" in message


def test_the_id_of_items_may_have_another_name(config: DataConfig) -> None:
    rewrite(config.items, ITEMS.replace("item,", "movie,"))
    expected = [("1", "Nails, red", ["Hair", "Nails"]), ("007", '5" pot', [])]
    assert read_table(replace(config, columns=Columns(id="movie"))).items.rows() == expected


@pytest.mark.parametrize("timestamp", ["timestamp", None])
def test_without_timestamps_the_order_of_rows_is_that_of_time(
    config: DataConfig, capsys: pytest.CaptureFixture[str], timestamp: str | None
) -> None:
    rewrite(config.interactions, "user,item\nann,007\nbob,1\nann,1\n")
    tables = read_table(replace(config, columns=Columns(timestamp=timestamp)))
    assert log_of(tables)["timestamp"].to_list() == [0, 1, 2]
    assert "rows are taken to be in the order of time" in capsys.readouterr().err


@pytest.mark.parametrize("categories", ["categories", None])
def test_without_categories_items_have_none(config: DataConfig, categories: str | None) -> None:
    rewrite(config.items, "item,title\n1,Nails\n")
    tables = read_table(replace(config, columns=Columns(categories=categories)))
    assert tables.items.rows() == [("1", "Nails", [])]


@pytest.mark.parametrize("role", ["timestamp", "categories"])
def test_a_column_that_may_be_meant_is_not_passed_over(
    config: DataConfig, complaint: Complaint, role: str
) -> None:
    rewrite(config.interactions, LOG.replace("timestamp", "when"))
    rewrite(config.items, ITEMS.replace("categories", "tags"))
    names = {"timestamp": "when", "categories": "tags"} | {role: role}
    message = complaint(read_table, replace(config, columns=Columns(**names)))
    assert message.endswith(f"set data.columns.{role}, or to null if there is none")


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


def test_categories_in_an_array(config: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    array = pl.Series([["a", "b"]], dtype=pl.Array(pl.String, 2))
    pl.DataFrame({"item": [1], "title": ["t"], "categories": array}).write_parquet(path)
    assert read_table(replace(config, items=str(path))).items.rows() == [("1", "t", ["a", "b"])]


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


def test_titles_are_found_as_they_stand_in_the_file(config: DataConfig) -> None:
    rewrite(config.items, 'item,title,categories\n1,"Ame\u0301lie \n  (2001)",x\n')
    assert read_table(config).items["title"].to_list() == [normal_title("Ame\u0301lie \n  (2001)")]


@pytest.mark.parametrize("ends", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["*", "^item$", "^.*$", "{0}", "a\nb", "user:float"])
def test_columns_may_have_any_name(
    config: DataConfig, tmp_path: Path, name: str, ends: str
) -> None:
    frame = pl.DataFrame({"x": [5], name: ["ann"], "item": ["1"], "timestamp": ["3"]})
    path = tmp_path / f"odd{ends}"
    frame.write_csv(path) if ends == ".csv" else frame.write_parquet(path)
    found = read_table(replace(config, interactions=str(path), columns=Columns(user=name)))
    assert log_of(found).rows() == [("ann", "1", 3)]


def test_spaces_around_fields_and_names_count_for_nothing(config: DataConfig) -> None:
    expected = read_table(config)
    rewrite(config.interactions, LOG.replace(",", ", ").replace("ann", "ann "))
    rewrite(config.items, ITEMS.replace("item", " item ").replace("\n1", "\n 1 "))
    tables = read_table(config)
    assert log_of(tables).equals(log_of(expected))
    assert tables.items.equals(expected.items)


def test_a_name_that_is_there_exactly_goes_before_one_with_spaces(config: DataConfig) -> None:
    rewrite(config.interactions, "user, user,item,timestamp\nann,x,1,5\n")
    assert log_of(read_table(config))["user"].to_list() == ["ann"]
    spaced = replace(config, columns=Columns(user=" user"))
    assert log_of(read_table(spaced))["user"].to_list() == ["x"]
