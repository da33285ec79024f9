"""The compiled programs of functions of `jax.jit`, which its types do not name."""

from typing import Any


def programs(function: Any) -> int:
    """The number of programs of a function."""
    count: int = function._cache_size()
    return count


def forget(function: Any) -> None:
    """Frees the programs of a function."""
    function.clear_cache()
