from collections.abc import Sequence

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from palr_jax.data.interactions import (
    InteractionLog,
    by_time,
    compact,
    encode,
    sequences,
    without_repeats,
)

ROW = st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), st.integers(0, 3))


def log_of(rows: Sequence[tuple[str, str, float]]) -> InteractionLog:
    return encode(pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row"))


def rows_of(log: InteractionLog) -> list[tuple[str, str, float]]:
    users, items = log.user_ids[log.user_N].tolist(), log.item_ids[log.item_N].tolist()
    return list(zip(users, items, log.timestamp_N.tolist(), strict=True))


def test_ids_stand_in_order_of_first_appearance() -> None:
    log = log_of([("z", "9", 5), ("a", "é", 1), ("z", "007", 2)])
    assert log.user_ids.tolist() == ["z", "a"]
    assert log.item_ids.tolist() == ["9", "é", "007"]
    assert log.user_N.tolist() == [0, 1, 0]
    assert log.user_N.dtype == log.item_N.dtype == np.int32


@given(st.lists(ROW, min_size=1, max_size=40))
def test_ties_in_time_keep_the_order_of_the_file(rows: list[tuple[str, str, int]]) -> None:
    in_time = rows_of(by_time(log_of(rows)))
    assert in_time == sorted(rows, key=lambda row: row[2])  # Python's sort is stable


@given(st.lists(ROW, min_size=1, max_size=40))
def test_the_first_of_repeats_stays(rows: list[tuple[str, str, int]]) -> None:
    first: dict[tuple[str, str], tuple[str, str, int]] = {}
    for row in rows:
        first.setdefault(row[:2], row)
    assert rows_of(without_repeats(log_of(rows))) == list(first.values())


@given(st.lists(ROW, min_size=1, max_size=40), st.data())
def test_compact_drops_only_ids_that_do_not_occur(
    rows: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    whole = log_of(rows)
    part = compact(whole.take(np.array(kept)))
    left = [row for row, keep in zip(rows, kept, strict=True) if keep]
    assert rows_of(part) == left
    assert part.user_ids.tolist() == [u for u in whole.user_ids if u in {row[0] for row in left}]
    assert part.item_ids.tolist() == [i for i in whole.item_ids if i in {row[1] for row in left}]


@given(st.lists(ROW, min_size=1, max_size=40))
def test_sequences_follow_the_log(rows: list[tuple[str, str, int]]) -> None:
    log = log_of(rows)
    got = [log.item_ids[row].tolist() for row in sequences(log)]
    assert got == [[item for user, item, _ in rows if user == who] for who in log.user_ids]
