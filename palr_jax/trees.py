"""The types of trees of arrays, as JAX, Flax and Optax pass them on."""

from typing import Any, TypeAlias, TypeVar

from flax import nnx

PyTree: TypeAlias = Any
"""Containers, nested to any depth, of arrays, or of one value per array: a shape or a sharding.

JAX's own functions on trees say no more about them. Where the containers are known, the type says
which.
"""

KeyPath: TypeAlias = tuple[Any, ...]
"""The path of a leaf, as `jax.tree.map_with_path` gives it: a key of JAX for each container."""

State: TypeAlias = nnx.State[Any, Any]
"""A module's variables: nested mappings from attribute names."""

_Module = TypeVar("_Module")


def split_off(
    module: _Module, wanted: nnx.filterlib.Filter
) -> tuple[nnx.GraphDef[_Module], State, State]:
    """Splits a module into its graph, the variables that a filter takes, and the others."""
    graph, taken, *others = nnx.split(module, wanted, ...)
    return graph, taken, others[0]
