import pytest

from palr_jax.padding import to_multiple, to_power_of_two


@pytest.mark.parametrize("step", [1, 8, 12])
def test_the_next_multiple(step: int) -> None:
    for size in range(40):
        assert to_multiple(size, step) == next(n for n in range(0, 99, step) if n >= size)


@pytest.mark.parametrize("least", [1, 8])
def test_the_next_power_of_two(least: int) -> None:
    assert to_power_of_two(0, least) == 0
    powers = [1, 2, 4, 8, 16, 32, 64]
    for size in range(1, 65):
        assert to_power_of_two(size, least) == next(n for n in powers if n >= max(size, least))
