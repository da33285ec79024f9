"""What every kind of checkpoint offers: named tensors that are read one at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stored:
    """A tensor that is still on disk.

    Attributes:
        shape: as Hugging Face has it: linears are [out, in].
        dtype: of what `read` gives.
        read: reads it, a fresh array each time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in memory once it is read."""
        return math.prod(self.shape) * self.dtype.itemsize
