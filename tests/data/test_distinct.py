from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.data.distinct import Distinct

KINDS: dict[Any, st.SearchStrategy[Any]] = {
    pl.String: st.sampled_from(["a", "b ", "7", "é", "x" * 40, None]),
    pl.Int64: st.integers(-3, 3) | st.none(),
    pl.Float64: st.sampled_from([0.5, 1.0, 1e300, float("nan"), None]),
    pl.Categorical: st.sampled_from(["a", "b", None]),
    pl.Null: st.none(),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_values_stand_in_order_of_first_appearance(kind: Any, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.lists(KINDS[kind], max_size=8), min_size=1, max_size=5))
    distinct = Distinct()
    for piece in pieces:
        distinct.add(pl.Series(piece, dtype=kind))
    null = None if kind.is_numeric() else ""
    missing = ("None", "nan", "''")
    rows = [repr(value) for piece in pieces for value in piece]
    rows = [repr(null) if row in missing else row for row in rows]
    values, codes = distinct.values(), distinct.codes()
    assert [repr(value) for value in values] == list(dict.fromkeys(rows))
    assert [repr(values[int(code)]) for code in codes] == rows
    assert distinct.first_rows().tolist() == [rows.index(repr(value)) for value in values]
    assert codes.dtype == np.int32
