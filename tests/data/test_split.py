from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palr_jax.data.split import Part, Split, leave_one_out
from palr_jax.ragged import Ragged


def split_of(rows: list[list[int]]) -> Split:
    return leave_one_out(Ragged.from_rows(rows), np.array([f"u{n}" for n in range(len(rows))]), 10)


ROWS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=8), max_size=6)


@given(ROWS)
def test_last_tests_and_the_one_before_validates(rows: list[list[int]]) -> None:
    split = split_of(rows)
    assert split.num_users == len(split.train) == len(rows)
    assert split.targets("test").tolist() == [row[-1] for row in rows]
    assert split.targets("validation").tolist() == [row[-2] for row in rows]
    assert [row.tolist() for row in split.train] == [row[:-2] for row in rows]


@given(ROWS)
def test_histories_are_all_that_comes_before_the_target(rows: list[list[int]]) -> None:
    split = split_of(rows)
    assert [row.tolist() for row in split.histories("validation")] == [row[:-2] for row in rows]
    assert [row.tolist() for row in split.histories("test")] == [row[:-1] for row in rows]
    assert [row.tolist() for row in split.histories("all")] == rows


@given(ROWS, st.data())
def test_histories_of_some_users_are_in_their_order(
    rows: list[list[int]], data: st.DataObject
) -> None:
    split = split_of(rows)
    users = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5) if rows else st.just([]))
    parts: list[tuple[Part | Literal["all"], int]] = [("validation", 2), ("test", 1), ("all", 0)]
    for part, left in parts:
        histories = split.histories(part, users)
        assert [row.tolist() for row in histories] == [
            rows[user][: len(rows[user]) - left] for user in users
        ]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_indices_are_int32(part: Part) -> None:
    split = split_of([[1, 2, 3], [4, 5, 6, 7]])
    assert split.targets(part).dtype == np.int32
    assert split.histories(part).values_N.dtype == np.int32
    assert split.histories("all").values_N.dtype == np.int32
