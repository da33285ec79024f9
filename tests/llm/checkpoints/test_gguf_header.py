"""Impossible headers of GGUF files are refused before memory or time is spent."""

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.gguf_header import read_header
from tests.llm.checkpoints.gguf_files import CONFIG, write_gguf

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def text(value: str) -> bytes:
    return U64.pack(len(value)) + value.encode()


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + U32.pack(version) + U64.pack(tensors) + U64.pack(values)


def array(kind: int, count: int) -> bytes:
    return header(values=1) + text("k") + U32.pack(9) + U32.pack(kind) + U64.pack(count)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    axes = b"".join(U64.pack(axis) for axis in shape)
    return text(name) + U32.pack(len(shape)) + axes + U32.pack(kind) + U64.pack(offset)


def padded(content: bytes, more: int) -> bytes:
    return content + bytes(-len(content) % 32) + bytes(more)


DAMAGED = {
    "empty": b"",
    "short": b"GGUF\3",
    "another kind": b"no weights" * 9,
    "version": header(version=1),
    "array of 2^60 numbers": array(4, 2**60),
    "array of 2^60 strings": array(8, 2**60) + bytes(64),
    "array of 2^60 in a long file": array(0, 2**60) + bytes(10**6),
    "array of many bytes": array(0, 10**7) + bytes(10**7),
    "array of arrays": array(9, 2**60) + bytes(10**4),
    "2^60 values": header(values=2**60) + bytes(10**6),
    "2^60 tensors": header(tensors=2**60) + bytes(10**6),
    "a string of 2^60": header(values=1) + U64.pack(2**60) + bytes(64),
    "a string of 2^64-1": header(values=1) + U64.pack(2**64 - 1) + bytes(64),
    "an unknown type": header(values=1) + text("k") + U32.pack(99) + bytes(64),
    "a key twice": header(values=2) + (text("k") + U32.pack(4) + U32.pack(1)) * 2,
    "not UTF-8": header(values=1) + U64.pack(2) + b"\xff\xfe" + bytes(64),
    "alignment": header(values=1) + text("general.alignment") + U32.pack(4) + U32.pack(3),
    "alignment 0": header(values=1) + text("general.alignment") + U32.pack(4) + U32.pack(0),
    "many axes": header(tensors=1) + text("t") + U32.pack(2**31) + bytes(64),
    "an axis of 2^60": padded(header(tensors=1) + tensor("t", (2**60, 2)), 64),
    "an axis of 0": padded(header(tensors=1) + tensor("t", (0, 2)), 64),
    "an unknown quantisation": padded(header(tensors=1) + tensor("t", (2,), kind=999), 64),
    "half a block": padded(header(tensors=1) + tensor("t", (7,), kind=8), 64),
    "cut off": padded(header(tensors=1) + tensor("t", (100,)), 64),
    "an offset beyond": padded(header(tensors=1) + tensor("t", (2,), offset=2**63), 64),
    "overlap": padded(header(tensors=2) + tensor("t", (8,)) + tensor("u", (8,), offset=16), 64),
    "a name twice": padded(header(tensors=2) + tensor("t", (8,)) + tensor("t", (8,), 0, 32), 99),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_one_line_at_once(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"m cannot be read as GGUF \(.*\): copy it again"):
        read_header(tmp_path / "m")
    assert time.monotonic() - start < 5


def test_a_pointer_of_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        read_header(tmp_path / "m")


@pytest.mark.parametrize("order", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
def test_what_the_package_reads_is_read_alike(order: gguf.GGUFEndian, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m", "llama", endianess=order)
    for key, value in {
        "a": 7,
        "b": -2.5,
        "c": "né",
        "d": True,
        "e": ["x", ""],
        "f": [1, -2],
    }.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for number, shape in enumerate([(3,), (2, 5), (4, 1, 3)]):
        writer.add_tensor(f"t{number}", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, entries = read_header(tmp_path / "m")
    reader = gguf.GGUFReader(tmp_path / "m")
    expected = {
        name: field.contents() for name, field in reader.fields.items() if "GGUF" not in name
    }
    assert metadata == expected
    for tensor in reader.tensors:
        entry = entries[tensor.name]
        assert (entry.offset, entry.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert entry.shape == tuple(tensor.shape[::-1])
        assert entry.order == ("<" if order == gguf.GGUFEndian.LITTLE else ">")


def test_every_kind_of_tensor_has_the_size_that_the_package_gives_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m", gguf.GGMLQuantizationType.Q4_1, CONFIG)
    _, entries = read_header(tmp_path / "m")
    sizes = {tensor.name: tensor.n_bytes for tensor in gguf.GGUFReader(tmp_path / "m").tensors}
    assert {name: entry.nbytes for name, entry in entries.items()} == sizes
