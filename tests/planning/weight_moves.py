"""Counts the weights that a compiled program gathers, for tests."""

import math
from collections.abc import Iterable
from contextlib import suppress

from palr_jax.planning.hlo import Collective


def weight_moves(
    found: Iterable[Collective], kernels: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """How often full, unsharded weights are put together on a chip in a step.

    Compilers turn weights over, so a weight and its transpose are one shape here. An array of
    several layers counts as many weights as it holds. Activations of the shape of a weight are
    taken for one: compare programs whose batch has another size.

    Args:
        found: the collectives of a program.
        kernels: the shapes of the weights of a layer.

    Returns:
        The moves of each shape, smaller axis first.
    """
    moves = {(min(kernel), max(kernel)): 0 for kernel in kernels}
    for one in found:
        for shape in one.shapes if one.kind != "collective-permute" else ():
            for kernel in moves:
                rest = list(shape)
                with suppress(ValueError):
                    rest.remove(kernel[0])
                    rest.remove(kernel[1])
                    moves[kernel] += math.prod(rest) * one.times
    return moves
