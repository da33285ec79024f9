import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.ragged import Ragged
from palr_jax.retrieval.losses import NO_TARGET
from palr_jax.retrieval.rows import (
    after_history,
    cloze_rows,
    mask_after_history,
    next_item_rows,
)


def histories_of(lengths: list[int]) -> Ragged:
    """Items 0, 1, 2, … so that an item identifies its user and its position."""
    return Ragged.from_lengths(np.arange(sum(lengths)), np.array(lengths, np.int64))


lengths_list = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(lengths_list, st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_predicts_every_item_once_from_what_came_before(
    lengths: list[int], length: int, batch_size: int, epoch: int
) -> None:
    histories = histories_of(lengths)
    num_items = len(histories.values_N)
    firsts = {int(first) for first in histories.offsets_R1[:-1]}
    rows = next_item_rows(histories, num_items, length, batch_size, 7, epoch)
    assert rows.item_RT.shape[1] == length
    assert len(rows.item_RT) % batch_size == 0
    targets = rows.target_RT[rows.target_RT != NO_TARGET]
    assert sorted(targets.tolist()) == list(range(num_items))
    for row in range(len(rows.item_RT)):
        for column in range(length):
            target = int(rows.target_RT[row, column])
            if target == NO_TARGET:
                continue
            before = num_items if target in firsts else target - 1
            assert rows.item_RT[row, column] == before
            position = int(rows.position_RT[row, column])
            continues = column > 0 and before != num_items
            assert position == (rows.position_RT[row, column - 1] + 1 if continues else 0)


def test_rows_are_a_pure_function_of_seed_and_epoch() -> None:
    histories = histories_of([30, 5, 17])

    def items(seed: int, epoch: int) -> np.ndarray:
        return np.asarray(next_item_rows(histories, 52, 8, 2, seed, epoch).item_RT)

    np.testing.assert_array_equal(items(0, 3), items(0, 3))
    assert (items(0, 3) != items(0, 4)).any()
    assert (items(0, 3) != items(1, 3)).any()


def test_a_long_history_is_cut_elsewhere_each_epoch() -> None:
    histories = histories_of([100])
    starts = set()
    for epoch in range(40):
        rows = next_item_rows(histories, 100, 10, 1, 0, epoch)
        cut = (rows.position_RT == 0) & (rows.target_RT > 0)
        starts |= {int(target) % 10 for target in rows.target_RT[cut]}
    assert starts == set(range(10))


@given(lengths_list, st.integers(1, 9))
def test_the_shape_is_the_same_every_epoch(lengths: list[int], length: int) -> None:
    histories = histories_of(lengths)
    shapes = {
        next_item_rows(histories, 500, length, 2, 0, epoch).item_RT.shape for epoch in range(4)
    }
    assert len(shapes) == 1


def test_rows_are_full() -> None:
    histories = histories_of([3] * 200)
    rows = next_item_rows(histories, 600, 20, 1, 0, 0)
    assert len(rows.item_RT) == 31  # 600 items, and an offset of at most 19


def test_after_history() -> None:
    histories = Ragged.from_rows([[], [5], [1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
    rows = after_history(histories, num_items=9, length=4)
    assert rows.item_RT.tolist() == [
        [9, 9, 9, 9],
        [9, 9, 9, 5],
        [9, 1, 2, 3],
        [1, 2, 3, 4],
        [2, 3, 4, 5],
    ]
    assert rows.position_RT.tolist() == [
        [0, 1, 2, 0],
        [0, 1, 0, 1],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]


@settings(deadline=None, max_examples=40)
@given(lengths_list, st.integers(2, 9), st.integers(0, 5))
def test_a_cloze_masks_items_and_predicts_them(lengths: list[int], length: int, epoch: int) -> None:
    histories = histories_of(lengths)
    num_items = len(histories.values_N)
    rows = cloze_rows(histories, num_items, length, 2, 7, epoch)
    masked = rows.target_RT != NO_TARGET
    assert (rows.item_RT[masked] == num_items).all()
    unmasked = np.where(masked, rows.target_RT, rows.item_RT)
    assert sorted(unmasked[unmasked < num_items].tolist()) == list(range(num_items))
    for row, positions in zip(unmasked, rows.position_RT, strict=True):
        for column in range(1, length):
            if positions[column] > 0 and row[column] < num_items:
                assert row[column] == row[column - 1] + 1


def test_some_histories_have_only_their_last_item_masked() -> None:
    histories = histories_of([20] * 400)
    rows = cloze_rows(histories, 8000, 20, 1, 0, 0)
    masked = rows.target_RT[rows.target_RT != NO_TARGET]
    per_user = np.bincount(masked // 20, minlength=400)
    last = np.isin(19 + 20 * np.arange(400), masked)
    assert 0.15 < np.mean((per_user == 1) & last) < 0.3
    assert 0.2 < per_user[per_user > 1].mean() / 20 < 0.35


def test_the_mask_token_follows_a_history() -> None:
    rows = mask_after_history(Ragged.from_rows([[1, 2, 3, 4, 5], [6], []]), 9, 4)
    assert rows.item_RT.tolist() == [[3, 4, 5, 9], [9, 9, 6, 9], [9, 9, 9, 9]]
    assert rows.position_RT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 0]]
