import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from palr_jax.data import reading
from palr_jax.data.reading import noting_files, numbered_lines, read_content, unzip
from tests.data.conftest import Complaint

MEND = "set it to a file"


Read = Callable[[Path], object]


def read_all(path: Path) -> bytes:
    return read_content(path, MEND).data


def read_lines(path: Path) -> list[tuple[int, str]]:
    return list(numbered_lines(path, MEND))


@pytest.mark.parametrize("read", [read_all, read_lines])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
class TestFaults:
    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    def test_missing(self, tmp_path: Path, complaint: Complaint, read: Read, name: str) -> None:
        assert complaint(read, tmp_path / name) == f"{tmp_path / name} is missing: {MEND}"

    def test_folder(self, tmp_path: Path, complaint: Complaint, read: Read, name: str) -> None:
        (tmp_path / name).mkdir()
        assert f"{tmp_path / name} cannot be read" in complaint(read, tmp_path / name)

    @pytest.mark.parametrize("data", [b"", b"\n \n"])
    def test_empty(
        self, tmp_path: Path, complaint: Complaint, read: Read, name: str, data: bytes
    ) -> None:
        self.write(tmp_path / name, data)
        assert complaint(read, tmp_path / name) == f"{tmp_path / name} is empty: {MEND}"


def test_lines_that_are_not_utf8(tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "a.json").write_bytes(b"one\ntwo\nthr\xe9\n")
    assert f"{tmp_path / 'a.json'}, line 3: not UTF-8" in complaint(read_lines, tmp_path / "a.json")


@pytest.mark.parametrize("read", [read_all, read_lines])
@pytest.mark.parametrize("cut", [0.001, 0.5, 0.999])
def test_gzip_cut_off(tmp_path: Path, complaint: Complaint, read: Read, cut: float) -> None:
    path = tmp_path / "a.csv.gz"
    whole = gzip.compress("".join(f"{n * n}\n" for n in range(2000)).encode())
    path.write_bytes(whole[: max(1, int(cut * len(whole)))])
    assert f"{path} is damaged or cut off" in complaint(read, path)


@pytest.mark.parametrize("read", [read_all, read_lines])
def test_not_gzip(tmp_path: Path, complaint: Complaint, read: Read) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(b"user,item\n")
    assert f"{path} is damaged or cut off" in complaint(read, path)


def test_numbers_count_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("one\n\nthree\n")
    assert read_lines(tmp_path / "a.json") == [(1, "one\n"), (3, "three\n")]


@pytest.mark.parametrize("read", [read_all, read_lines])
def test_a_byte_order_mark_is_no_part_of_the_text(
    tmp_path: Path, complaint: Complaint, read: Read
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbfone\n")
    assert read(path) in (b"one\n", [(1, "one\n")])


def test_utf16_is_named(tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "a.csv").write_bytes("user,item\n".encode("utf-16"))
    assert "a.csv is UTF-16: convert the file to UTF-8" in complaint(read_all, tmp_path / "a.csv")


@pytest.mark.parametrize("read", [read_all, read_lines])
@pytest.mark.parametrize("piece", [b"0" * 999_999 + b"\n", b"\n" * 1_000_000])
def test_what_unpacks_to_more_than_a_table_is_refused(
    tmp_path: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch, read: Read, piece: bytes
) -> None:
    monkeypatch.setattr(reading, "_ALWAYS_BYTES", 20_000_000)
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(30):
            file.write(piece)
    assert path.stat().st_size < 200_000
    assert "unpacks to more than 100 times its size" in complaint(read, path)


def test_a_line_that_never_ends_is_refused(tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "a.json").write_bytes(b"{}\n" + b"0" * 17_000_000)
    assert "line 2: longer than 16 MB" in complaint(read_lines, tmp_path / "a.json")


@pytest.mark.parametrize(
    "name, problem",
    [("a.csv", "holds a line longer than 16 MB"), ("a.parquet", "not a complete Parquet file")],
)
def test_a_terabyte_of_nothing_is_not_read(
    tmp_path: Path, complaint: Complaint, name: str, problem: str
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(10**12)
    assert problem in complaint(read_all, tmp_path / name)


def test_every_file_that_is_read_is_noted_once(tmp_path: Path) -> None:
    for name in ("a.csv", "a.json", "unread.csv"):
        (tmp_path / name).write_text("one\n")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/ratings.csv", "one\n")
    with noting_files() as files:
        for _ in range(2):
            read_all(tmp_path / "a.csv")
            read_lines(tmp_path / "a.json")
            unzip(tmp_path / "a.zip", "ratings.csv", MEND)
    read_all(tmp_path / "unread.csv")
    assert files == [tmp_path / name for name in ("a.csv", "a.json", "a.zip")]
