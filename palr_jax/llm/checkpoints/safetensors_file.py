"""Safetensors files, one tensor at a time.

A file consists of the length of its header (8 bytes, little endian), the header (JSON: name →
dtype, shape, offsets), and the bytes of the tensors. The `safetensors` package is not used: it maps
whole files into memory, which counts as resident, and writes from a dict of all tensors.
"""

import json
import math
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from palr_jax.errors import UserError
from palr_jax.json_types import Json, JsonObject
from palr_jax.llm.checkpoints.small_files import refuse_pointer
from palr_jax.llm.checkpoints.stored import Stored

_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
# The limit of the format. Without it a damaged length could allocate any amount of memory.
_MAX_HEADER = 100_000_000


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a file, which are read lazily, and its metadata.

    Raises:
        UserError: the file is missing, truncated or damaged, or has an unsupported dtype.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            refuse_pointer(path, start + file.read(64))
            file.seek(8)
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"its header takes {length:,} bytes, the file {size:,}")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        metadata = _metadata(header.pop("__metadata__", {}))
        tensors = {name: _entry(path, 8 + length, size, info) for name, info in header.items()}
        _check_offsets(header, size - 8 - length)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: copy it again") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read (nested too deeply): copy it again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from None
    for name, info in header.items():
        if info["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: tensor {name} is of type {info['dtype']}; "
                f"only {', '.join(_DTYPES)} can be read"
            )
    return tensors, metadata


def write_file(path: Path, tensors: Iterable[tuple[str, Stored]], metadata: dict[str, str]) -> None:
    """Writes tensors, with at most one of them in memory."""
    entries = list(tensors)
    header: JsonObject = {"__metadata__": metadata}
    offset = 0
    for name, tensor in entries:
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in entries:
            file.write(np.ascontiguousarray(tensor.read()).view(np.uint8).data)


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    """A JSON object whose keys are unique, as the format requires."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _metadata(found: Json) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata does not map strings to strings")
    return found


def _entry(path: Path, start: int, size: int, info: JsonObject) -> Stored:
    dtype = _DTYPES.get(info["dtype"], np.dtype(np.uint8))
    shape = tuple(_whole(axis) for axis in info["shape"])
    first, last = (_whole(offset) for offset in info["data_offsets"])
    if start + last > size:
        raise ValueError(f"it is cut off: {size:,} bytes of at least {start + last:,}")
    count = math.prod(shape)
    if info["dtype"] in _DTYPES and last - first != count * dtype.itemsize:
        raise ValueError(f"its header has shape {shape} for {last - first:,} bytes")
    return Stored(shape, dtype, partial(_read_tensor, path, start + first, shape, dtype))


def _whole(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"its header holds {number!r} instead of a size")
    return number


def _check_offsets(header: JsonObject, size: int) -> None:
    """Checks that the tensors are contiguous, as the format requires, and fill the file."""
    offsets = sorted(tuple(info["data_offsets"]) for info in header.values())
    end = 0
    for first, last in offsets:
        if first != end or last < first:
            raise ValueError(f"its tensors overlap or leave a gap at byte {min(first, end):,}")
        end = last
    if end != size:
        raise ValueError(f"{size - end:,} bytes follow its last tensor")


def _read_tensor(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    # NumPy cannot read bfloat16 from files, so bytes are read and reinterpreted.
    data = np.empty(count * dtype.itemsize, np.uint8)
    with path.open("rb") as file:
        file.seek(offset)
        if file.readinto(data.data) != len(data):
            raise UserError(f"{path} was cut off while it was read: copy it again")
    return data.view(dtype).reshape(shape)
