import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.safetensors_file import read_header, write_file
from palr_jax.llm.checkpoints.stored import Stored

TYPES = [np.float32, np.float16]
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@settings(max_examples=40, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=5), kind=st.sampled_from(TYPES))
def test_what_the_package_writes_is_read_and_what_is_written_the_package_reads(
    shapes: list[tuple[int, ...]], kind: type[np.floating], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("st")
    rng = np.random.default_rng(len(shapes))
    values = {f"t{i}": rng.normal(size=shape).astype(kind) for i, shape in enumerate(shapes)}
    save_file(values, folder / "theirs", {"format": "pt"})
    tensors, metadata = read_header(folder / "theirs")
    assert metadata == {"format": "pt"}
    for name, value in values.items():
        assert tensors[name].nbytes == value.nbytes
        np.testing.assert_array_equal(tensors[name].read(), value)
        assert tensors[name].read().dtype == kind
    write_file(folder / "ours", tensors.items(), {"format": "pt", "note": "né"})
    back = load_file(folder / "ours")
    assert back.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value)
    with safe_open(folder / "ours", "numpy") as opened:
        assert opened.metadata() == {"format": "pt", "note": "né"}


def test_bfloat16_and_transposed_arrays_keep_every_bit(tmp_path: Path) -> None:
    value = np.arange(-6, 6).reshape(3, 4).astype(ml_dtypes.bfloat16).T
    stored = Stored(value.shape, value.dtype, lambda: value)
    write_file(tmp_path / "f", [("a", stored)], {})
    tensors, _ = read_header(tmp_path / "f")
    np.testing.assert_array_equal(tensors["a"].read(), value)
    with safe_open(tmp_path / "f", "flax") as opened:
        np.testing.assert_array_equal(np.asarray(opened.get_tensor("a")), value)


def header(entries: JsonObject) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 4) + b"{[}]",
        struct.pack("<Q", 2) + b"[]",
        header({"a": {"dtype": "F32", "shape": [2]}}),
        header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + bytes(7),
        header({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}) + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}) + bytes(8),
        header(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            }
        )
        + bytes(12),
        header(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            }
        )
        + bytes(8),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}) + bytes(12),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + bytes(9),
        header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}) + bytes(8),
        header({"a": {"dtype": "I64", "shape": [1], "data_offsets": [8, 0]}}) + bytes(8),
        header({"__metadata__": ["x"]}),
        header({"__metadata__": {"palr_jax.base": 1}}),
        struct.pack("<Q", 27) + b'{"__metadata__":{},"a":{},"a":{}}'[:27],
        struct.pack("<Q", 60) + b'{"__metadata__": {"a": "1", "a": "2"}}'.ljust(60),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
)
def test_a_damaged_file_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match=r"f cannot be read \(.*copy it again") as error:
        read_header(tmp_path / "f")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is missing"):
        read_header(tmp_path / "none")
