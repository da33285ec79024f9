"""The compiled programs of functions of `jax.jit`, which its types do not name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

from palr_jax.trees import State


def programs(function: Any) -> int:
    """The number of programs of a function."""
    count: int = function._cache_size()
    return count


def forget(function: Any) -> None:
    """Frees the programs of a function."""
    function.clear_cache()


def compiled(
    function: Callable[..., Any], module: nnx.Module, *arguments: Any, **options: Any
) -> Any:
    """Calls a function or method of a module in one program; options are static.

    Op by op, a module compiles dozens of small programs, and each of its scans at every call.
    """
    graph, weights = nnx.split(module)
    return _compiled(graph, weights, function, tuple(options.items()), *arguments)


def forward(module: nnx.Module, *arguments: Any, **options: Any) -> Any:
    """Calls a module in one program."""
    return compiled(type(module).__call__, module, *arguments, **options)


@partial(jax.jit, static_argnums=(0, 2, 3))
def _compiled(
    graph: nnx.GraphDef[Any],
    weights: State,
    function: Callable[..., Any],
    options: tuple[tuple[str, Any], ...],
    *arguments: Any,
) -> Any:
    return function(nnx.merge(graph, weights), *arguments, **dict(options))
