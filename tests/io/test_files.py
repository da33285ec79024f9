from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from palr_jax.errors import UserError
from palr_jax.io.files import (
    read_arrays,
    read_json,
    replacing,
    write_arrays,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with suppress(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_its_folder_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "old")
    write_text(path, "né")
    assert path.read_bytes() == "né".encode()
    assert list(path.parent.iterdir()) == [path]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"é": [1, 2.5, None, "x"], "b": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("data", [b"", b'{"a": ', b'"\xff"'])
def test_damaged_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json is missing"):
        read_json(path)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(path)


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"ids": np.array(["é", "long one"]), "n": np.array(3), "x": np.zeros((0, 2), np.int32)}
    write_arrays(tmp_path / "a.npz", **arrays)
    read = read_arrays(tmp_path / "a.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_damaged_arrays(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"a\.npz is missing"):
        read_arrays(path)
    write_arrays(path, x=np.arange(100), y=np.arange(100))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.npz cannot be read") as caught:
        read_arrays(path)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_arrays(tmp_path / "a.npz")
