import os
from pathlib import Path

import pytest

from palr_jax.errors import UserError
from palr_jax.io.parts import has_parts, parts
from palr_jax.io.stamps import can_take, retake, take

NAMES = ["b.csv", "a.csv", "a-10.csv", "a-9.csv", "c.parquet", "_SUCCESS", ".a.csv.crc", "d/e.csv"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def names(path: Path) -> list[str]:
    return [file.name for file in parts(path)]


def test_the_files_in_a_folder_are_sorted_by_name(folder: Path) -> None:
    assert has_parts(folder)
    assert names(folder) == ["a-10.csv", "a-9.csv", "a.csv", "b.csv", "c.parquet"]


def test_a_pattern_may_have_wild_cards_at_any_level(folder: Path) -> None:
    assert has_parts(folder / "*.csv")
    assert names(folder / "*.csv") == ["a-10.csv", "a-9.csv", "a.csv", "b.csv"]
    assert names(folder / "a-?.csv") == ["a-9.csv"]
    assert names(folder / "[bc].*") == ["b.csv", "c.parquet"]
    assert names(folder / "*" / "*.csv") == ["e.csv"]
    assert names(folder / "no*") == []


def test_a_pattern_may_be_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert parts(Path("b*")) == [Path("b.csv")]


def test_a_file_has_no_parts_whatever_its_name(folder: Path) -> None:
    (folder / "[1].csv").write_text("x")
    assert not has_parts(folder / "[1].csv")
    assert not has_parts(folder / "missing.csv")


def test_folders_at_any_depth_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds \*\*: write a \* for each folder"):
        parts(folder / "**" / "*.csv")


@pytest.mark.parametrize("name", ["", "*.csv"])
def test_the_stamp_of_parts_is_that_of_their_names(folder: Path, name: str) -> None:
    stamp = take(folder / name)
    (folder / "a.csv").write_text("other")
    os.utime(folder, ns=(1, 1))
    assert retake(folder / name, stamp) == stamp
    (folder / "b.csv").rename(folder / "bb.csv")
    renamed = retake(folder / name, stamp)
    assert renamed.content != stamp.content
    (folder / "a.csv").unlink()
    assert retake(folder / name, renamed).content != renamed.content


def test_what_has_no_parts_has_no_stamp(folder: Path) -> None:
    assert can_take(folder)
    assert can_take(folder / "a.csv")
    (folder / "empty").mkdir()
    for name in ("empty", "no*", "missing", "d/missing"):
        assert not can_take(folder / name)
