"""Rows of user, item and time → the interaction log, without the rows as text."""

import numpy as np
import polars as pl

from palr_jax.data.columns import Column, as_numbers, ids, joined_timestamps, timestamps
from palr_jax.data.distinct import Distinct
from palr_jax.data.interactions import InteractionLog, coded
from palr_jax.data.table_parts import Rows
from palr_jax.io.progress import say


def read_log(rows: Rows) -> InteractionLog:
    """The log of rows with `user`, `item` and perhaps `timestamp`; without it, time is the row.

    A check of all values is one of the distinct values, at the first row of each: it finds the same
    row first.

    Raises:
        UserError: a part cannot be read, or a row has an invalid value; names the line or row.
    """
    found = {"user": Distinct(), "item": Distinct()}
    times: list[pl.Series] = []
    count = 0
    for piece in rows.pieces:
        if not count:
            _check_types(rows, piece)
        for role, distinct in found.items():
            distinct.add(piece[role])
        if "timestamp" in piece.columns:
            times.append(as_numbers(piece["timestamp"]))
        count += len(piece)
    user_N, user_ids = _coded(rows, "user", found.pop("user"))
    item_N, item_ids = _coded(rows, "item", found.pop("item"))
    return InteractionLog(user_N, item_N, _times(rows, times, count), user_ids, item_ids)


def _check_types(rows: Rows, piece: pl.DataFrame) -> None:
    """Raises a UserError if a column is of a type that holds no ids or timestamps."""
    for role in piece.columns:
        none = Column(piece[role].clear(), rows.names[role], rows.table, rows.where)
        timestamps(none) if role == "timestamp" else ids(none)


def _coded(rows: Rows, role: str, distinct: Distinct) -> tuple[np.ndarray, np.ndarray]:
    first_D = distinct.first_rows()
    column = Column(
        distinct.values(), rows.names[role], rows.table, lambda row: rows.where(int(first_D[row]))
    )
    # Two values may be one id, such as "7" and " 7".
    code_D, names = coded(ids(column))
    return code_D[distinct.codes()], names


def _times(rows: Rows, pieces: list[pl.Series], count: int) -> np.ndarray:
    if not pieces:
        say(f"{rows.table}: without timestamps, rows are taken to be in the order of time")
        return np.arange(count)
    name = rows.names["timestamp"]
    column = Column(joined_timestamps(pieces), name, rows.table, rows.where)
    return timestamps(column).to_numpy()
