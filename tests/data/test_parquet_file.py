"""Parquet files by pieces; damaged ones are in test_any_input.py."""

import io
from pathlib import Path

import polars as pl
import pytest

from palr_jax.data import parquet_file
from palr_jax.data.parquet_file import open_parquet
from palr_jax.data.reading import Content

TABLE = pl.DataFrame(
    {"*": [3, 1, None], "none": pl.Series([None] * 3, dtype=pl.Null), "c": ["x", "y", "z"]}
)


def content(table: pl.DataFrame) -> Content:
    data = io.BytesIO()
    table.write_parquet(data)
    return Content(Path("t.parquet"), data.getvalue())


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 1], [1], [0]])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_pieces_are_the_columns_as_stored_nulls_included(
    places: list[int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "_PIECE_ROWS", rows)
    file = open_parquet(content(TABLE))
    assert file.header == TABLE.columns
    pieces = list(file.pieces(places, has_header=True))
    assert [len(piece) for piece in pieces] == [
        len(TABLE[start : start + rows]) for start in range(0, 3, rows)
    ]
    whole = pl.concat(pieces)
    assert whole.equals(TABLE[:, places])
    assert whole.dtypes == TABLE[:, places].dtypes


def test_an_empty_table_is_one_empty_piece() -> None:
    (piece,) = open_parquet(content(TABLE.clear())).pieces([1, 2], has_header=True)
    assert piece.schema == TABLE[:, [1, 2]].schema
    assert not len(piece)
