from datetime import date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from palr_jax.data.columns import Column, ids, lists, texts, timestamps
from tests.data.conftest import Complaint


def column(values: Any, dtype: Any = None) -> Column:
    return Column(
        pl.Series("t", values, dtype, strict=False), "t", "FILE", lambda row: f"row {row}"
    )


@pytest.mark.parametrize(
    "values, expected, dtype",
    [
        (["3", "-1"], [3, -1], pl.Int64),
        (["3", "2.5"], [3.0, 2.5], pl.Float64),
        ([3.5, 2.0], [3.5, 2.0], pl.Float64),
        ([Decimal("3.5"), Decimal(2)], [3.5, 2.0], pl.Float64),
        (["9007199254740993"], [9007199254740993], pl.Int64),
        (["1970-01-02", "1970-01-01T00:00:01Z"], [86_400_000_000, 1_000_000], pl.Int64),
        (["1970-01-01 00:00:01.5", "1970-01-01T02:00+02:00"], [1_500_000, 0], pl.Int64),
        ([date(1970, 1, 2)], [1], pl.Int64),
        ([datetime(1970, 1, 1, 0, 0, 1)], [1_000_000], pl.Int64),
    ],
)
def test_timestamps_are_whole_where_they_can_be(
    values: list[Any] | pl.Series,
    expected: list[int] | list[float],
    dtype: pl.DataType | type[pl.DataType] | None,
) -> None:
    made = timestamps(column(values))
    assert (made.to_list(), made.dtype) == (expected, dtype)


@pytest.mark.parametrize("wrong", ["x", "inf", "2014-01-01", "1,5"])
def test_a_timestamp_that_is_no_number(complaint: Complaint, wrong: str) -> None:
    message = complaint(timestamps, column(["1", wrong]))
    assert message == f"row 1: the timestamp {wrong!r} is not a number: mend or delete that row"


@pytest.mark.parametrize("wrong", ["2014-13-01", "soon", "01.02.2014"])
def test_a_timestamp_that_is_no_date(complaint: Complaint, wrong: str) -> None:
    message = complaint(timestamps, column(["2014-12-31", wrong]))
    assert message.startswith(
        f"row 1: the timestamp {wrong!r} is not a date as 2014-12-31T23:59:59"
    )


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        (["007", "a b", "Zoë"], None, ["007", "a b", "Zoë"]),
        ([1, 2], pl.UInt64, ["1", "2"]),
        ([1.0, 25.0], None, ["1", "25"]),
        ([Decimal("3.00")], None, ["3"]),
        (["1.0", "25.0"], None, ["1", "25"]),
        (["1.0", "25"], None, ["1.0", "25"]),
        (["a", "b"], pl.Categorical, ["a", "b"]),
        (["nan", "ann"], None, ["nan", "ann"]),
    ],
)
def test_ids(
    values: list[Any] | pl.Series,
    dtype: pl.DataType | type[pl.DataType] | None,
    expected: list[str],
) -> None:
    assert ids(column(values, dtype)).to_list() == expected


@pytest.mark.parametrize(
    "values, problem",
    [
        ([1.0, float("nan")], "no value in column 't'"),
        ([1.0, None], "no value in column 't'"),
        (["1", "NaN"], "no value in column 't'"),
        (["1", "  "], "no value in column 't'"),
        (["1", None], "no value in column 't'"),
        ([1.0, 2.5], "the id 2.5 in column 't' is not a whole number"),
        (pl.Series([1.0, 2.0**25], dtype=pl.Float32), "the id 33554432.0 in column 't' is not"),
        ([1.0, 1e300], "the id 1e+300 in column 't' is not a whole number"),
        ([1.0, float("inf")], "the id inf in column 't' is not a whole number"),
        (["1", "x" * 50_000], "takes more than 256 bytes"),
        (["1", "a\nb"], "has a control character"),
        (["1", "a\0"], "has a control character"),
    ],
)
def test_a_row_without_a_usable_id_is_named(
    complaint: Complaint, values: list[Any] | pl.Series, problem: str
) -> None:
    message = complaint(ids, column(values))
    assert message.startswith("row 1: ")
    assert problem in message
    assert len(message) < 200


@pytest.mark.parametrize(
    "values",
    [[{"a": 1}], [[1]], [True], [date(2014, 1, 1)], [b"x"]],
)
def test_columns_of_other_types_are_refused_with_their_type(
    complaint: Complaint, values: list[Any] | pl.Series
) -> None:
    given = column(values)
    kind = str(given.values.dtype)
    refused = [(ids,), (texts,), (lists, "|")]
    for read, *more in refused[: 2 if isinstance(values[0], list) else 3]:
        assert f"FILE: column 't' is of type {kind}, not " in complaint(read, given, *more)
    if not isinstance(values[0], date):
        assert f"FILE: column 't' is of type {kind}, not " in complaint(timestamps, given)


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        (["a|b", None, ""], None, [["a", "b"], [""], [""]]),
        ([["a", None], None], None, [["a", ""], []]),
        ([["a", "b"]], pl.Array(pl.String, 2), [["a", "b"]]),
        ([["a"]], pl.List(pl.Categorical), [["a"]]),
        ([[1, 2]], None, [["1", "2"]]),
        ([None], pl.Null, [[""]]),
    ],
)
def test_lists(
    values: list[Any] | pl.Series,
    dtype: pl.DataType | type[pl.DataType] | None,
    expected: list[list[str]],
) -> None:
    assert lists(column(values, dtype), "|").to_list() == expected


@pytest.mark.parametrize("values", [[[["a"]]], [[{"a": 1}]], [[1.5]]])
def test_lists_of_other_types_are_refused(
    complaint: Complaint, values: list[Any] | pl.Series
) -> None:
    assert "not texts or lists of texts" in complaint(lists, column(values), "|")


def test_a_column_may_have_any_name(complaint: Complaint) -> None:
    values = pl.Series(["1", None])
    named = Column(values, "{0}{x", "FILE", lambda row: f"row {row}")
    assert "no value in column '{0}{x'" in complaint(ids, named)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["['Hair', \"Men's\"]", "", "[]", "['a|b']"], [["Hair", "Men's"], [], [], ["a|b"]]),
        (['["Hair", "Nails"]', '["\\u00e9"]', None], [["Hair", "Nails"], ["é"], []]),
        (["['Hair']", "Nails|Men"], [["['Hair']"], ["Nails", "Men"]]),
        (["[Hair]", "[Hair]|[Men]"], [["[Hair]"], ["[Hair]", "[Men]"]]),
        (["[1, 2]"], [["[1, 2]"]]),
        (["[{[]}]"], [["[{[]}]"]]),
        (["[" * 9999 + "]"], [["[" * 9999 + "]"]]),
    ],
)
def test_lists_that_are_written_out_in_all_rows_are_read(
    written: list[str | None], expected: list[list[str]]
) -> None:
    assert lists(column(written), "|").to_list() == expected
