"""Rows of different lengths in one flat array."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Integer rows of different lengths: row r is `values_N[offsets_R1[r]:offsets_R1[r + 1]]`.

    Attributes:
        values_N: int32, the rows concatenated.
        offsets_R1: int64, R + 1 ascending offsets, from 0 to N.
    """

    values_N: np.ndarray
    offsets_R1: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> "Ragged":
        """Concatenates rows; an empty iterable gives zero rows."""
        arrays = [np.asarray(row, np.int32) for row in rows]
        lengths = np.array([len(array) for array in arrays], np.int64)
        return cls.from_lengths(np.concatenate([np.zeros(0, np.int32), *arrays]), lengths)

    @classmethod
    def from_lengths(cls, values_N: np.ndarray, lengths_R: np.ndarray) -> "Ragged":
        """Cuts `values_N` into rows of the given lengths."""
        offsets_R1 = np.concatenate([[0], np.cumsum(lengths_R)]).astype(np.int64)
        return cls(np.asarray(values_N, np.int32), offsets_R1)

    @classmethod
    def checked(cls, values_N: np.ndarray, offsets_R1: np.ndarray) -> "Ragged":
        """Rows from arrays that were read from a file.

        Raises:
            ValueError: the arrays are not integer vectors, or the offsets are invalid.
        """
        for array in (values_N, offsets_R1):
            if array.ndim != 1 or array.dtype.kind != "i":
                raise ValueError(
                    f"a vector of integers is expected, not {array.dtype} {array.shape}"
                )
        ends = offsets_R1[[0, -1]].tolist() if len(offsets_R1) else []
        if ends != [0, len(values_N)] or (np.diff(offsets_R1) < 0).any():
            raise ValueError("the row offsets do not ascend from 0 to the number of values")
        return cls(values_N, offsets_R1)

    def __len__(self) -> int:
        return len(self.offsets_R1) - 1

    def __getitem__(self, row: int | np.integer) -> np.ndarray:
        """Row `row`, a view."""
        return self.values_N[self.offsets_R1[row] : self.offsets_R1[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows in order, as views."""
        return (self[row] for row in range(len(self)))

    @property
    def lengths_R(self) -> np.ndarray:
        """int64, the length of each row."""
        return np.diff(self.offsets_R1)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Ragged":
        """The given rows, in the given order."""
        row_K = np.asarray(rows, np.int64)
        return Ragged.from_lengths(
            self.join(row_K), self.offsets_R1[row_K + 1] - self.offsets_R1[row_K]
        )

    def join(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The values of the given rows, concatenated: [sum of their lengths]."""
        row_K = np.asarray(rows, np.int64)
        start_K = self.offsets_R1[row_K]
        length_K = self.offsets_R1[row_K + 1] - start_K
        end_K = np.cumsum(length_K)
        shift_K = start_K - end_K + length_K
        return self.values_N[np.repeat(shift_K, length_K) + np.arange(length_K.sum())]

    def padded(self, width: int, fill: int) -> np.ndarray:
        """The rows, none longer than `width`, padded on the right: int32 [R, width]."""
        values_RW = np.full((len(self), width), fill, np.int32)
        values_RW[np.arange(width) < self.lengths_R[:, None]] = self.values_N
        return values_RW

    def last(self, width: int, fill: int) -> np.ndarray:
        """The last `width` values of each row, right-aligned and padded on the left: [R, width]."""
        column_W = np.arange(width) - width
        index_RW = self.offsets_R1[1:, None] + column_W
        inside_RW = index_RW >= self.offsets_R1[:-1, None]
        if not len(self.values_N):
            return np.full((len(self), width), fill, np.int32)
        return np.where(inside_RW, self.values_N[np.maximum(index_RW, 0)], fill).astype(np.int32)
