"""The distinct values of a column that is read a piece at a time.

Shapes: N rows, P rows of a piece, F of them with values not seen before, D distinct values.
"""

import numpy as np
import polars as pl

_KEY = "value"


class Distinct:
    """Distinct values, in the order of first appearance, and which of them each row has.

    Rows are held as 4 bytes each, and values once. Null and the empty text count as one value, and
    so do null and NaN.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._codes: list[np.ndarray] = []
        self._known: pl.DataFrame | None = None  # value, code, first row

    def add(self, values: pl.Series) -> None:
        """Adds the next rows: texts, numbers or nulls, of the same type as the rows before."""
        if not values.dtype.is_numeric():
            keys = values.cast(pl.String).fill_null("")
        else:  # a join of Polars 2.1 finds other numbers equal to NaN
            keys = values.fill_nan(None) if values.dtype.is_float() else values
        piece = keys.alias(_KEY).to_frame().with_row_index("row", self._rows)
        known = _with_codes(piece.clear(), 0) if self._known is None else self._known
        code_P = _lookup(piece, known)
        is_new_P = code_P < 0
        new = piece.filter(pl.Series(is_new_P))
        fresh = _with_codes(new.unique(_KEY, keep="first", maintain_order=True), len(known))
        code_P[is_new_P] = _lookup(new, fresh)
        self._known = pl.concat([known, fresh])
        self._codes.append(code_P)
        self._rows += len(values)

    def values(self) -> pl.Series:
        """The distinct values [D]; texts of every type as texts."""
        assert self._known is not None, "add a piece first"
        return self._known[_KEY]

    def first_rows(self) -> np.ndarray:
        """The first row of each distinct value, int64 [D]."""
        assert self._known is not None, "add a piece first"
        return self._known["row"].to_numpy()

    def codes(self) -> np.ndarray:
        """The index of each row's value, int32 [N]."""
        return np.concatenate(self._codes)


def _lookup(rows: pl.DataFrame, known: pl.DataFrame) -> np.ndarray:
    """The code of each row's value, -1 where it is not known."""
    found = rows.join(known, on=_KEY, how="left", nulls_equal=True, maintain_order="left")
    return found["code"].fill_null(-1).to_numpy().copy()


def _with_codes(rows: pl.DataFrame, start: int) -> pl.DataFrame:
    """The rows with codes from `start`."""
    codes = pl.int_range(start, start + len(rows), dtype=pl.Int32, eager=True).alias("code")
    rows = rows.select(pl.col(_KEY), pl.col("row").cast(pl.Int64), codes)
    if rows.schema[_KEY] == pl.String:
        # A copy: texts that are taken from a column keep the whole column in memory.
        rows = rows.with_columns(pl.col(_KEY) + "")
    return rows
