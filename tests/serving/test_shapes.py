import pytest

from palr_jax.decoding.score_plan import Sizes
from palr_jax.serving.shapes import Room, Shapes

USUAL = Room(64, Sizes(16, 128, 24), (1, 8, 32))
ALL = Room(128, Sizes(512, 256, 24), (1,))
SHAPES = Shapes((64, 128, 256), (USUAL, ALL))


def test_a_batch_takes_the_least_shape_that_holds_it() -> None:
    assert [USUAL.rows_for(count) for count in (1, 2, 8, 9, 32, 99)] == [1, 8, 8, 32, 32, 32]
    assert [SHAPES.width_for(tokens) for tokens in (1, 64, 65, 256)] == [64, 64, 128, 256]
    assert SHAPES.room_for(50, Sizes(8, 64, 24)) is USUAL
    assert SHAPES.room_for(50, Sizes(24, 64, 24)) is ALL
    assert SHAPES.room_for(65, Sizes(8, 64, 24)) is ALL


def test_what_no_shape_holds_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="longer than any"):
        SHAPES.width_for(257)
    with pytest.raises(ValueError, match="fit no shape"):
        SHAPES.room_for(129, Sizes(8, 64, 24))


@pytest.mark.parametrize("count", range(1, 100))
def test_no_batch_is_less_than_half_full(count: int) -> None:
    taken = USUAL.rows_to_take(count)
    assert taken in USUAL.rows
    assert taken <= 2 * count
