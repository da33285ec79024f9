"""Sizes rounded up, so that few distinct shapes occur and few programs are compiled."""


def to_multiple(size: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `size`."""
    return -(-size // step) * step


def to_power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and `least`; 0 for 0."""
    return max(least, 1 << (size - 1).bit_length()) if size else 0
