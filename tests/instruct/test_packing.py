import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palr_jax.instruct.packing import Example, Packing, best_fit, pack

PACKING = Packing(rows=2, length=20, label_length=9)
SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=30)


def examples_of(sizes: list[tuple[int, int]]) -> list[Example]:
    """Example i is made of the numbers 1000 i, 1000 i + 1, …"""
    made = []
    for i, (prompt, label) in enumerate(sizes):
        ids = 1000 * (i + 1) + np.arange(prompt + label, dtype=np.int32)
        made.append(Example(ids[:prompt], ids[prompt:], False, False))
    return made


@given(SIZES)
def test_every_example_stands_in_one_row_once(sizes: list[tuple[int, int]]) -> None:
    examples = examples_of(sizes)
    packed = pack(examples, PACKING, np.random.default_rng(0))
    found = []
    for row in range(len(packed["tokens_RT"])):
        tokens, position, segment = (
            packed[f"{name}_RT"][row] for name in ("tokens", "position", "segment")
        )
        target, index, weight = (
            packed[f"{name}_RM"][row] for name in ("target", "target_index", "weight")
        )
        assert ((tokens > 0) == (segment > 0)).all()
        assert ((target > 0) == (weight > 0)).all()
        for number in range(1, segment.max() + 1):
            places = np.flatnonzero(segment == number)
            np.testing.assert_array_equal(places, places[0] + np.arange(len(places)))
            np.testing.assert_array_equal(position[places], np.arange(len(places)))
            example = examples[tokens[places[0]] // 1000 - 1]
            whole = np.concatenate([example.prompt_T, example.label_M])
            np.testing.assert_array_equal(tokens[places], whole[:-1])
            # The token after the index of a target is that target.
            mine = np.flatnonzero((weight > 0) & (segment[index] == number))
            np.testing.assert_array_equal(target[mine], example.label_M)
            np.testing.assert_array_equal(tokens[index[mine]] + 1, target[mine])
            found.append(int(example.prompt_T[0]))
    assert sorted(found) == [int(example.prompt_T[0]) for example in examples]


@given(SIZES)
def test_best_fit_opens_a_row_only_for_what_fits_nowhere(sizes: list[tuple[int, int]]) -> None:
    tokens_N = np.array([prompt + label - 1 for prompt, label in sizes])
    label_N = np.array([label for _, label in sizes])
    row_N = best_fit(tokens_N, label_N, PACKING)
    assert sorted(set(row_N)) == list(range(row_N.max() + 1))
    assert np.bincount(row_N, tokens_N).max() <= PACKING.length
    assert np.bincount(row_N, label_N).max() <= PACKING.label_length
    order = np.argsort(-tokens_N, kind="stable")
    for place, example in enumerate(order):
        earlier = order[:place]
        if not (row_N[earlier] == row_N[example]).any():
            for row in set(row_N[earlier]):
                mine = earlier[row_N[earlier] == row]
                assert (
                    tokens_N[mine].sum() + tokens_N[example] > PACKING.length
                    or label_N[mine].sum() + label_N[example] > PACKING.label_length
                )


def test_the_fullest_row_that_fits_is_taken() -> None:
    # 12 and 10 open a row each, 8 fits both and fills the first, 7 goes to the second.
    sizes = np.array([7, 12, 8, 10])
    ones = np.ones(4, np.int64)
    assert best_fit(sizes, ones, PACKING).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("sizes", [(21, 1), (5, 10)])
def test_an_example_longer_than_a_row_is_a_bug(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too long for a row"):
        best_fit(np.array(sizes[:1]), np.array(sizes[1:]), PACKING)
