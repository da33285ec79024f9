"""Safetensors files, one tensor at a time.

A file is the length of its header (8 bytes, little endian), the header (JSON: name → dtype,
shape, offsets), and the bytes of the tensors. It is read with plain reads instead of the
`safetensors` package, which maps whole files into memory, where they count as resident, and
writes from a dict that holds all tensors at once.
"""

import json
import math
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from palr_jax.errors import UserError
from palr_jax.llm.stored import Stored

_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
# The format allows no more; a damaged length would ask for any amount of memory.
_LONGEST_HEADER = 100_000_000


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a file, not yet read, and its metadata.

    Raises:
        UserError: the file is missing, cut off, damaged, or holds a type other than floats.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
            size = file.seek(0, 2)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _entry(path, 8 + length, size, info) for name, info in header.items()}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: copy it again") from None
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
    """Writes tensors as they come from `read`; never more than one of them is in memory."""
    entries = list(tensors)
    header: dict[str, Any] = {"__metadata__": metadata}
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


def _entry(path: Path, start: int, size: int, info: dict[str, Any]) -> Stored:
    dtype = _DTYPES.get(info["dtype"], np.dtype(np.uint8))
    shape = tuple(int(axis) for axis in info["shape"])
    first, last = info["data_offsets"]
    if start + last > size:
        raise ValueError(f"it is cut off: {size:,} bytes of at least {start + last:,}")
    count = math.prod(shape)
    if info["dtype"] in _DTYPES and last - first != count * dtype.itemsize:
        raise ValueError(f"its header gives shape {shape} to {last - first:,} bytes")
    return Stored(shape, dtype, partial(_read, path, start + first, shape, dtype))


def _read(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    # NumPy reads no bfloat16 from files, so the bytes come first.
    data = np.empty(count * dtype.itemsize, np.uint8)
    with path.open("rb") as file:
        file.seek(offset)
        if file.readinto(data.data) != len(data):
            raise UserError(f"{path} was cut off while it was read: copy it again")
    return data.view(dtype).reshape(shape)
