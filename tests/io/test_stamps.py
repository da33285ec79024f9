import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.io import stamps
from palr_jax.io.stamps import files_in, is_whole, retake, take


def test_a_copy_is_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"some rows")
    stamp = take(file)
    os.utime(file, ns=(1, 1))
    assert is_whole(file, stamp)
    assert retake(file, stamp).content == stamp.content


def test_a_file_of_the_same_size_and_time_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"some rows")
    stamp = take(file)
    monkeypatch.setattr(stamps, "_digest", lambda path: pytest.fail("was read"))
    assert is_whole(file, stamp)
    assert retake(file, stamp) is stamp


@settings(max_examples=50)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_file_is_whole_if_its_bytes_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes
) -> None:
    file = tmp_path_factory.mktemp("stamps") / "a"
    file.write_bytes(before)
    stamp = take(file)
    file.write_bytes(after)
    os.utime(file, ns=(1, 1))
    assert is_whole(file, stamp) == (before == after)


def test_neither_a_folder_nor_nothing_is_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"")
    stamp = take(file)
    file.unlink()
    assert not is_whole(file, stamp)
    file.mkdir()
    assert not is_whole(file, stamp)


def test_all_files_but_hidden_ones_count(tmp_path: Path) -> None:
    for name in ("9/x", "10/x", "10/.hidden", "other/y", "z", ".lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "9")
    names = [f"{file.relative_to(tmp_path)}" for file in files_in(tmp_path)]
    assert names == ["10/x", "9/x", "linked/x", "other/y", "z"]
    assert files_in(tmp_path / "z") == [tmp_path / "z"]
    assert files_in(tmp_path / "none") == []
