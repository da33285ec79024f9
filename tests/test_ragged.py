import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palr_jax.ragged import Ragged

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=5), max_size=6)


@given(ROWS)
def test_rows_go_in_and_come_out(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows)
    assert len(ragged) == len(rows)
    assert [row.tolist() for row in ragged] == rows
    assert ragged.lengths_R.tolist() == [len(row) for row in rows]
    assert (ragged.values_N.dtype, ragged.offsets_R1.dtype) == (np.int32, np.int64)


@given(ROWS)
def test_from_lengths_cuts_where_from_rows_joined(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows)
    again = Ragged.from_lengths(ragged.values_N, ragged.lengths_R)
    assert [row.tolist() for row in again] == rows


@given(ROWS, st.data())
def test_take(rows: list[list[int]], data: st.DataObject) -> None:
    index = st.integers(0, max(0, len(rows) - 1))
    chosen = data.draw(st.lists(index, max_size=5 if rows else 0))
    taken = Ragged.from_rows(rows).take(chosen)
    assert [row.tolist() for row in taken] == [rows[row] for row in chosen]
    joined = Ragged.from_rows(rows).join(chosen)
    assert joined.tolist() == [value for row in chosen for value in rows[row]]
    assert joined.dtype == np.int32


@given(ROWS, st.integers(0, 7))
def test_last_pads_on_the_left(rows: list[list[int]], width: int) -> None:
    last = Ragged.from_rows(rows).last(width, fill=9)
    assert last.shape == (len(rows), width)
    assert last.dtype == np.int32
    for got, row in zip(last.tolist(), rows, strict=True):
        kept = row[-width:] if width else []
        assert got == [9] * (width - len(kept)) + kept


def test_a_row_beyond_the_last_is_an_error() -> None:
    with pytest.raises(IndexError):
        Ragged.from_rows([[1], [2]])[2]
