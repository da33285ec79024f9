"""The header of a GGUF file: its metadata and the offsets of its tensors.

Every length in a header is checked before anything of that length is allocated, so that a damaged
file cannot cost much memory or time.
"""

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import gguf
import numpy as np

from palr_jax.errors import UserError
from palr_jax.json_types import Json, JsonObject
from palr_jax.llm.checkpoints.small_files import refuse_pointer

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Vocabularies of 260,000 tokens with their merges take 20 MB, in arrays of 600,000 values.
_MAX_HEADER = 100_000_000
_MAX_VALUES = 1 << 22
_MAX_AXES = 4
# NumPy dtypes of scalar values by type id; strings and arrays have separate type ids.
_NUMBERS = {
    0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "u1", 10: "u8", 11: "i8",
    12: "f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9

# Byte order of a number.
Order = Literal["<", ">"]


@dataclass(frozen=True)
class TensorEntry:
    """The header entry of a tensor.

    Attributes:
        path: the file.
        name: llama.cpp's name of the tensor.
        kind: the quantisation of its values.
        shape: in NumPy's order, the slowest axis first.
        offset: offset of its first byte in the file.
        nbytes: its size in the file.
        order: byte order of its numbers.
    """

    path: Path
    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    order: Order


def read_header(path: Path) -> tuple[JsonObject, dict[str, TensorEntry]]:
    """The metadata of a file, and its tensors by name.

    Raises:
        UserError: the file is missing, truncated, damaged, or not GGUF.
    """
    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
            cursor = _Cursor(file)
            metadata = _metadata(cursor)
            return metadata, _entries(path, cursor, metadata)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a GGUF file") from None
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be read as GGUF ({error}): copy it again") from None


class _Cursor:
    """Reads a header sequentially; `tensors` and `values` are the counts at its start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self._end = min(self.size, _MAX_HEADER)
        file.seek(0)
        if self.take(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.take(4)
        # The version is a small number, so the position of its zeros gives the byte order.
        self.order: Order = ">" if version.startswith(b"\0\0") else "<"
        (number,) = struct.unpack(f"{self.order}I", version)
        if number not in _VERSIONS:
            raise ValueError(f"its version {number} is unknown")
        self.tensors, self.values = self.number(10), self.number(10)

    @property
    def position(self) -> int:
        return self._file.tell()

    def take(self, count: int) -> bytes:
        if count > self._end - self._file.tell():
            raise ValueError(f"it is cut off or damaged at byte {self._file.tell():,}")
        return self._file.read(count)

    def number(self, kind: int) -> Json:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: int, count: int) -> list[Json]:
        if kind not in _NUMBERS:
            raise ValueError(f"it holds a value of unknown type {kind}")
        dtype = np.dtype(_NUMBERS[kind]).newbyteorder(self.order)
        found = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return [bool(value) for value in found] if kind == _BOOL else found

    def string(self) -> str:
        return self.take(self.number(10)).decode()

    def value(self) -> Json:
        kind = self.number(4)
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(kind)
        kind, count = self.number(4), self.number(10)
        if count > _MAX_VALUES:
            raise ValueError(f"it holds an array of {count:,} values")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return self.numbers(kind, count)


def _metadata(cursor: _Cursor) -> JsonObject:
    metadata: JsonObject = {}
    for _ in range(cursor.values):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"it has the key {key!r} twice")
        metadata[key] = cursor.value()
    return metadata


def _entries(path: Path, cursor: _Cursor, metadata: dict[str, object]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for _ in range(cursor.tensors):
        entry = _entry(path, cursor)
        if entry.name in entries:
            raise ValueError(f"it has the tensor {entry.name!r} twice")
        entries[entry.name] = entry
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment!r}")
    start = math.ceil(cursor.position / alignment) * alignment
    end = start
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        first = start + entry.offset
        if first < end:
            raise ValueError(f"the tensor {entry.name!r} overlaps another one")
        end = first + entry.nbytes
        if end > cursor.size:
            raise ValueError(f"it is cut off: {cursor.size:,} bytes of at least {end:,}")
    return {name: replace(entry, offset=start + entry.offset) for name, entry in entries.items()}


def _entry(path: Path, cursor: _Cursor) -> TensorEntry:
    """Reads the entry of a tensor; its offset is still relative to the data."""
    name, axes = cursor.string(), cursor.number(4)
    if not 1 <= axes <= _MAX_AXES:
        raise ValueError(f"the tensor {name!r} has {axes} axes")
    shape = tuple(cursor.numbers(10, axes)[::-1])  # GGUF has the fastest axis first
    kind = gguf.GGMLQuantizationType(cursor.number(4))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        raise ValueError(f"the tensor {name!r} has shape {shape}, stored as {kind.name}")
    nbytes = math.prod(shape) // block * size
    return TensorEntry(path, name, kind, shape, cursor.number(10), nbytes, cursor.order)
