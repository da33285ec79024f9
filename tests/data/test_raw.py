import gzip
from decimal import Decimal

import polars as pl
import pytest

from palr_jax.data.raw import items_table, numbered_lines, read_text, timestamps


def test_texts_are_in_normal_form_and_categories_neither_empty_nor_repeated() -> None:
    items = items_table(["1"], [" a\ne\u0301"], [["Hair ", "", "Nails", "Hair", " \t"]])
    assert items.rows() == [("1", "a é", ["Hair", "Nails"])]


@pytest.mark.parametrize(
    "values, expected, dtype",
    [
        (["3", "-1"], [3, -1], pl.Int64),
        (["3", "2.5"], [3.0, 2.5], pl.Float64),
        ([3.5, 2.0], [3.5, 2.0], pl.Float64),
        ([Decimal("3.5"), Decimal(2)], [3.5, 2.0], pl.Float64),
        (["9007199254740993"], [9007199254740993], pl.Int64),
    ],
)
def test_timestamps_keep_whole_numbers_whole(values, expected, dtype) -> None:
    column = timestamps(pl.Series("t", values), str)
    assert (column.to_list(), column.dtype) == (expected, dtype)


@pytest.mark.parametrize("wrong", ["x", "nan", "inf", "2014-01-01", "1,5"])
def test_a_timestamp_that_is_no_number(complaint, wrong: str) -> None:
    message = complaint(timestamps, pl.Series("t", ["1", wrong]), lambda row: f"line {row}")
    assert message == f"line 1: the t {wrong!r} is not a number"


MEND = "set it to a file"


def read_all(path) -> str:
    return read_text(path, MEND)


def read_lines(path) -> list[tuple[int, str]]:
    return list(numbered_lines(path, MEND))


@pytest.mark.parametrize("read", [read_all, read_lines])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
class TestFaults:
    def write(self, path, data: bytes) -> None:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    def test_missing(self, tmp_path, complaint, read, name) -> None:
        assert complaint(read, tmp_path / name) == f"{tmp_path / name} is missing: {MEND}"

    def test_folder(self, tmp_path, complaint, read, name) -> None:
        (tmp_path / name).mkdir()
        assert f"{tmp_path / name} cannot be read" in complaint(read, tmp_path / name)

    @pytest.mark.parametrize("data", [b"", b"\n \n"])
    def test_empty(self, tmp_path, complaint, read, name, data) -> None:
        self.write(tmp_path / name, data)
        assert complaint(read, tmp_path / name) == f"{tmp_path / name} is empty: {MEND}"

    def test_not_utf8(self, tmp_path, complaint, read, name) -> None:
        self.write(tmp_path / name, b"one\ntwo\nthr\xe9\n")
        assert f"{tmp_path / name}, line 3: not UTF-8" in complaint(read, tmp_path / name)


@pytest.mark.parametrize("read", [read_all, read_lines])
@pytest.mark.parametrize("cut", [0.001, 0.5, 0.999])
def test_gzip_cut_off(tmp_path, complaint, read, cut: float) -> None:
    path = tmp_path / "a.csv.gz"
    whole = gzip.compress("".join(f"{n * n}\n" for n in range(2000)).encode())
    path.write_bytes(whole[: max(1, int(cut * len(whole)))])
    assert f"{path} is damaged or cut off" in complaint(read, path)


@pytest.mark.parametrize("read", [read_all, read_lines])
def test_not_gzip(tmp_path, complaint, read) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(b"user,item\n")
    assert f"{path} is damaged or cut off" in complaint(read, path)


def test_numbers_count_blank_lines(tmp_path) -> None:
    (tmp_path / "a.json").write_text("one\n\nthree\n")
    assert read_lines(tmp_path / "a.json") == [(1, "one\n"), (3, "three\n")]
