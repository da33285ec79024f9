import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest

from palr_jax.data import movielens, reading
from palr_jax.data.config import DataConfig
from palr_jax.data.movielens import (
    read_csv_archive,
    read_dat_archive,
    read_ml_100k,
    read_ml_latest_small,
)
from palr_jax.data.raw import RawTables
from tests.data.conftest import Complaint, log_of
from tests.locations import SHARED

DATA = SHARED / "data"
ML_1M = DATA / "ml-1m"
RATINGS = "1::20::5::978300760\n1::3::3::978300760\n2::20::4::978300000\n"
MOVIES = '3::Pokémon: The First Movie (1998)::Animation|Children\'s\n20::"Heat"  (1995)::Crime\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ml-1m"
    path.mkdir()
    (path / "ratings.dat").write_bytes(RATINGS.encode("latin-1"))
    (path / "movies.dat").write_bytes(MOVIES.encode("latin-1"))
    return path


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"ml-1m/{file.name}")
    return path


def read(path: Path) -> RawTables:
    return read_dat_archive(DataConfig(source="ml-1m", path=str(path)))


@pytest.mark.parametrize("packed", [False, True])
def test_ml_1m(folder: Path, packed: bool) -> None:
    tables = read(zipped(folder) if packed else folder)
    assert log_of(tables).schema == {
        "user": pl.String,
        "item": pl.String,
        "timestamp": pl.Int64,
    }
    assert log_of(tables).rows() == [
        ("1", "20", 978300760),
        ("1", "3", 978300760),
        ("2", "20", 978300000),
    ]
    assert tables.items.rows() == [
        ("3", "Pokémon: The First Movie (1998)", ["Animation", "Children's"]),
        ("20", '"Heat" (1995)', ["Crime"]),
    ]
    assert tables.items_file.name == "movies.dat"


def test_ml_1m_saved_as_utf8(folder: Path) -> None:
    expected = read(folder).items
    for mark in ("", "\ufeff"):
        (folder / "movies.dat").write_text(mark + MOVIES, "utf-8", newline="\r\n")
        (folder / "ratings.dat").write_text(mark + RATINGS, "utf-8", newline="\r\n")
        tables = read(folder)
        assert tables.items.equals(expected)
        assert log_of(tables)["user"].to_list() == ["1", "1", "2"]


def test_ml_1m_of_lines_in_both_encodings(folder: Path) -> None:
    more = "21::Amélie (2001)::Drama\n".encode()
    (folder / "movies.dat").write_bytes(MOVIES.encode("latin-1") + more)
    titles = read(folder).items["title"].to_list()
    assert titles == ["Pokémon: The First Movie (1998)", '"Heat" (1995)', "Amélie (2001)"]


def test_ml_10m(folder: Path) -> None:
    (folder / "movies.dat").write_text(MOVIES + "9::Pull My Daisy (1958)::(no genres listed)\n")
    (folder / "ratings.dat").write_text(RATINGS.replace("::5::", "::4.5::"))
    tables = read_dat_archive(DataConfig(source="ml-10m", path=str(zipped(folder))))
    assert log_of(tables)["item"].to_list() == ["20", "3", "20"]
    assert tables.items["categories"].to_list()[2] == []


@pytest.mark.parametrize("packed", [False, True])
def test_ml_20m_25m_and_32m(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "ml-25m"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n")
    movies = 'movieId,title,genres\n296,"Pulp Fiction, The (1994)",Crime|Drama\n'
    (folder / "movies.csv").write_text(movies + "3,Léon (1994),(no genres listed)\n")
    path = zipped(folder) if packed else folder
    tables = read_csv_archive(DataConfig(source="ml-25m", path=str(path)))
    assert log_of(tables).rows() == [("1", "296", 1147880044)]
    assert tables.items.rows() == [
        ("296", "Pulp Fiction, The (1994)", ["Crime", "Drama"]),
        ("3", "Léon (1994)", []),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_ml_100k(tmp_path: Path, complaint: Complaint, packed: bool) -> None:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    none, flags = ["0"] * 19, ["0"] * 19
    flags[5] = flags[18] = "1"
    lines = [
        "242|Léon (1994)|01-Jan-1994||http://us.imdb.com/M/title-exact?Leon|" + "|".join(flags),
        "302|unknown||||" + "|".join(["1", *none[1:]]),
    ]
    (folder / "u.item").write_text("\n".join(lines) + "\n", "latin-1")
    config = DataConfig(source="ml-100k", path=str(zipped(folder) if packed else folder))
    tables = read_ml_100k(config)
    assert log_of(tables).rows() == [
        ("196", "242", 881250949),
        ("186", "302", 891717742),
    ]
    assert tables.items.rows() == [
        ("242", "Léon (1994)", ["Comedy", "Western"]),
        ("302", "unknown", []),
    ]
    (folder / "u.item").write_text(lines[0] + "\n302||01-Jan-1994|||" + "|".join(none), "latin-1")
    message = complaint(read_ml_100k, DataConfig(source="ml-100k", path=str(folder)))
    assert message.startswith(f"{folder / 'u.item'}, line 2: not of the form item|title|")


def test_an_id_without_end_is_refused(folder: Path, complaint: Complaint) -> None:
    (folder / "ratings.dat").write_text(RATINGS + "x" * 50_000 + "::20::5::978300760\n")
    message = complaint(read, folder)
    assert message.startswith(f"{folder / 'ratings.dat'}, line 4: the id 'xxx")
    assert len(message) < 300


def test_path_not_given(complaint: Complaint) -> None:
    message = complaint(read_dat_archive, DataConfig(source="ml-1m"))
    assert message.startswith("data.path is not given")
    assert "ml-1m.zip" in message


def test_path_missing_or_of_another_kind(folder: Path, complaint: Complaint) -> None:
    assert "is missing" in complaint(read, folder / "no")
    assert "is missing" in complaint(read, folder / "no.zip")
    assert "unknown extension" in complaint(read, folder / "movies.dat")


@pytest.mark.parametrize("name", ["ratings.dat", "movies.dat"])
def test_a_file_is_missing_or_empty(folder: Path, complaint: Complaint, name: str) -> None:
    (folder / name).write_bytes(b"\n")
    assert complaint(read, folder).startswith(f"{folder / name} is empty: set data.path")
    assert f"{name} is empty" in complaint(read, zipped(folder))
    (folder / name).unlink()
    assert f"{folder / name} is missing" in complaint(read, folder)
    assert f"holds no file named {name}" in complaint(read, zipped(folder))


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.99])
def test_zip_cut_off(folder: Path, complaint: Complaint, cut: float) -> None:
    path = zipped(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    assert f"{path} is damaged or cut off" in complaint(read, path)


def test_zip_with_damaged_content(folder: Path, complaint: Complaint) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("ml-1m/ratings.dat")
    start = member.header_offset + 30 + len(member.filename)
    data = bytearray(path.read_bytes())
    data[start : start + 10] = b"\xff" * 10
    path.write_bytes(data)
    assert f"{path} is damaged or cut off" in complaint(read, path)


def patched(path: Path, offset: int, value: bytes) -> Path:
    """The zip with bytes of every local header and entry of its directory replaced."""
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        place = data.find(mark)
        while place >= 0:
            data[place + at : place + at + len(value)] = value
            place = data.find(mark, place + 4)
    path.write_bytes(data)
    return path


def test_zip_encrypted(folder: Path, complaint: Complaint) -> None:
    message = complaint(read, patched(zipped(folder), 6, b"\x01\x00"))
    assert "ratings.dat is encrypted: unpack it and set data.path to" in message


@pytest.mark.parametrize("method", [9, 97, 99, 0xFFFF])
def test_zip_of_an_unknown_compression(folder: Path, complaint: Complaint, method: int) -> None:
    message = complaint(read, patched(zipped(folder), 8, method.to_bytes(2, "little")))
    assert "cannot be unpacked" in message
    assert "set data.path to the official ml-1m.zip or its folder" in message


def test_zip_of_an_unknown_version(folder: Path, complaint: Complaint) -> None:
    message = complaint(read, patched(zipped(folder), 4, b"\xff\x00"))
    assert "cannot be unpacked (zip file version 25.5)" in message


def test_zip_with_several_files_of_the_name(folder: Path, complaint: Complaint) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("copy/ratings.dat", "1::2::3::4\n")
    assert "holds several files named ratings.dat" in complaint(read, path)


def test_zip_bomb(folder: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ALWAYS_BYTES", 1_000_000)
    (folder / "ratings.dat").write_bytes(b"1::2::3::4\n" * 1_000_000)
    assert "unpacks to more than 100 times its size" in complaint(read, zipped(folder))


@pytest.mark.parametrize(
    "line", ["5::6::7", "5", "5::6::7::8::9", "5::::7::8", "5,6,7,8", "x\x1fy"]
)
@pytest.mark.parametrize("before", ["", RATINGS])
def test_a_line_of_ratings_of_another_form(
    folder: Path, complaint: Complaint, line: str, before: str
) -> None:
    (folder / "ratings.dat").write_text(before + line + "\n" + RATINGS)
    number = before.count("\n") + 1
    message = complaint(read, folder)
    assert message.startswith(f"{folder / 'ratings.dat'}, line {number}: not of the form")


def test_a_line_of_movies_of_another_form(folder: Path, complaint: Complaint) -> None:
    (folder / "movies.dat").write_text(MOVIES + "21::Up (2009)\n", "latin-1")
    assert complaint(read, folder).startswith(f"{folder / 'movies.dat'}, line 3: not of the form")


def test_a_timestamp_that_is_no_number(folder: Path, complaint: Complaint) -> None:
    (folder / "ratings.dat").write_text(RATINGS + "1::3::5::noon\n")
    message = complaint(read, folder)
    problem = "the timestamp 'noon' is not a number: mend or delete that row"
    assert message == f"{folder / 'ratings.dat'}, line 4: {problem}"


def test_bundled() -> None:
    tables = read_ml_latest_small(DataConfig())
    assert log_of(tables).shape == (100_836, 3)
    assert log_of(tables).row(0) == ("1", "1", 964982703)
    assert tables.items.shape == (9_742, 3)
    titles = dict(zip(tables.items["item"], tables.items["title"], strict=True))
    assert titles["318"] == "Shawshank Redemption, The (1994)"
    categories = dict(zip(tables.items["item"], tables.items["categories"].to_list(), strict=True))
    assert categories["318"] == ["Crime", "Drama"]
    assert categories["114335"] == []  # "(no genres listed)"
    assert sum(not names for names in categories.values()) == 34


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared")
@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv", "README.txt"])
def test_bundled_files_are_the_official_ones(name: str) -> None:
    bundled = Path(movielens.__file__).parent / "bundled" / "ml-latest-small"
    packed = bundled / f"{name}.gz"
    data = (
        gzip.decompress(packed.read_bytes()) if packed.exists() else (bundled / name).read_bytes()
    )
    assert data == (DATA / "ml-latest-small" / name).read_bytes()


@pytest.mark.skipif(not ML_1M.exists(), reason="needs ../shared")
def test_official_format_agrees_with_the_table_in_time_order(tmp_path: Path) -> None:
    with gzip.open(ML_1M / "ratings-users-1-to-2999.dat.gz") as file:
        (tmp_path / "ratings.dat").write_bytes(file.read())
    (tmp_path / "movies.dat").write_bytes((ML_1M / "movies.dat").read_bytes())
    tables = read(tmp_path)
    users = [str(user) for user in range(1, 3000)]
    order = pl.read_csv(ML_1M / "interactions.csv.gz", infer_schema=False)
    expected = order.filter(pl.col("user").is_in(users)).group_by("user", maintain_order=True)
    in_time = (
        log_of(tables).filter(pl.col("user").is_in(users)).sort("timestamp", maintain_order=True)
    )
    got = in_time.group_by("user").agg("item")
    both = expected.agg("item").join(got, on="user", suffix="_got")
    assert both.height == 2999
    assert (both["item"] == both["item_got"]).all()
    items = pl.read_csv(ML_1M / "items.csv.gz", infer_schema=False)
    assert tables.items["item"].to_list() == items["item"].to_list()
    assert tables.items["title"].to_list() == items["title"].to_list()
    assert tables.items["categories"].list.join("|").to_list() == items["categories"].to_list()
