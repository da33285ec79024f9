"""A tensor of a checkpoint of any format, which is read lazily."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stored:
    """A tensor that is still on disk.

    Attributes:
        shape: in Hugging Face's order: linears are [out, in].
        dtype: dtype of the array that `read` returns.
        read: reads the tensor into a new array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize
