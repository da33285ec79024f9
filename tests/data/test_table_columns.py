"""The columns of a table: by name, by number, by what other tools write."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.table import read_table
from tests.data.conftest import Complaint, log_of
from tests.data.tables import ITEMS, LOG, rewrite


def test_columns_are_named_by_the_config(config: DataConfig) -> None:
    rewrite(config.interactions, "when,who,rating,what\n5,ann,4.0,007\n3,bob,,1\n")
    rewrite(config.items, "name,what,tags\nNails,1,a;b\nPot,007,c\n")
    columns = Columns("who", "what", "when", "name", "tags", ";")
    tables = read_table(replace(config, columns=columns))
    assert log_of(tables).rows() == [("ann", "007", 5), ("bob", "1", 3)]
    assert tables.items.rows() == [("1", "Nails", ["a", "b"]), ("007", "Pot", ["c"])]


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
