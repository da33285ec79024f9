import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest

from palr_jax.data import movielens
from palr_jax.data.config import DataConfig
from palr_jax.data.movielens import read_dat_archive, read_ml_latest_small

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ML_1M = SHARED / "ml-1m"
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


def read(path: Path):
    return read_dat_archive(DataConfig(source="ml-1m", path=str(path)))


@pytest.mark.parametrize("packed", [False, True])
def test_ml_1m(folder, packed) -> None:
    tables = read(zipped(folder) if packed else folder)
    assert tables.interactions.schema == {
        "user": pl.String,
        "item": pl.String,
        "timestamp": pl.Int64,
    }
    assert tables.interactions.rows() == [
        ("1", "20", 978300760),
        ("1", "3", 978300760),
        ("2", "20", 978300000),
    ]
    assert tables.items.rows() == [
        ("3", "Pokémon: The First Movie (1998)", ["Animation", "Children's"]),
        ("20", '"Heat" (1995)', ["Crime"]),
    ]
    assert tables.items_file.name == "movies.dat"


def test_path_not_given(complaint) -> None:
    message = complaint(read_dat_archive, DataConfig(source="ml-1m"))
    assert message.startswith("data.path is not given")
    assert "ml-1m.zip" in message


def test_path_missing_or_of_another_kind(folder, complaint) -> None:
    assert "is missing" in complaint(read, folder / "no")
    assert "is missing" in complaint(read, folder / "no.zip")
    assert "unknown extension" in complaint(read, folder / "movies.dat")


@pytest.mark.parametrize("name", ["ratings.dat", "movies.dat"])
def test_a_file_is_missing_or_empty(folder, complaint, name) -> None:
    (folder / name).write_bytes(b"\n")
    assert complaint(read, folder).startswith(f"{folder / name} is empty: set data.path")
    assert f"{name} is empty" in complaint(read, zipped(folder))
    (folder / name).unlink()
    assert f"{folder / name} is missing" in complaint(read, folder)
    assert f"holds no file named {name}" in complaint(read, zipped(folder))


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.99])
def test_zip_cut_off(folder, complaint, cut) -> None:
    path = zipped(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    assert f"{path} is damaged or cut off" in complaint(read, path)


def test_zip_with_damaged_content(folder, complaint) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("ml-1m/ratings.dat")
    start = member.header_offset + 30 + len(member.filename)
    data = bytearray(path.read_bytes())
    data[start : start + 10] = b"\xff" * 10
    path.write_bytes(data)
    assert f"{path} is damaged or cut off" in complaint(read, path)


@pytest.mark.parametrize(
    "line", ["5::6::7", "5", "5::6::7::8::9", "5::::7::8", "5,6,7,8", "x\x1fy"]
)
@pytest.mark.parametrize("before", ["", RATINGS])
def test_a_line_of_ratings_of_another_form(folder, complaint, line, before) -> None:
    (folder / "ratings.dat").write_text(before + line + "\n" + RATINGS)
    number = before.count("\n") + 1
    message = complaint(read, folder)
    assert message.startswith(f"{folder / 'ratings.dat'}, line {number}: not of the form")


def test_a_line_of_movies_of_another_form(folder, complaint) -> None:
    (folder / "movies.dat").write_text(MOVIES + "21::Up (2009)\n", "latin-1")
    assert complaint(read, folder).startswith(f"{folder / 'movies.dat'}, line 3: not of the form")


def test_a_timestamp_that_is_no_number(folder, complaint) -> None:
    (folder / "ratings.dat").write_text(RATINGS + "1::3::5::noon\n")
    message = complaint(read, folder)
    problem = "the timestamp 'noon' is not a number: mend or delete that row"
    assert message == f"{folder / 'ratings.dat'}, line 4: {problem}"


def test_bundled() -> None:
    tables = read_ml_latest_small(DataConfig())
    assert tables.interactions.shape == (100_836, 3)
    assert tables.interactions.row(0) == ("1", "1", 964982703)
    assert tables.items.shape == (9_742, 3)
    titles = dict(zip(tables.items["item"], tables.items["title"], strict=True))
    assert titles["318"] == "Shawshank Redemption, The (1994)"
    categories = dict(zip(tables.items["item"], tables.items["categories"].to_list(), strict=True))
    assert categories["318"] == ["Crime", "Drama"]
    assert categories["114335"] == []  # "(no genres listed)"
    assert sum(not names for names in categories.values()) == 34


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv", "README.txt"])
def test_bundled_files_are_the_official_ones(name: str) -> None:
    bundled = Path(movielens.__file__).parent / "bundled" / "ml-latest-small"
    packed = bundled / f"{name}.gz"
    data = (
        gzip.decompress(packed.read_bytes()) if packed.exists() else (bundled / name).read_bytes()
    )
    assert data == (SHARED / "ml-latest-small" / name).read_bytes()


@pytest.mark.skipif(not ML_1M.exists(), reason="needs ../shared")
def test_official_format_agrees_with_the_table_in_time_order(tmp_path: Path) -> None:
    with gzip.open(ML_1M / "ratings-users-1-to-2999.dat.gz") as file:
        (tmp_path / "ratings.dat").write_bytes(file.read())
    (tmp_path / "movies.dat").write_bytes((ML_1M / "movies.dat").read_bytes())
    tables = read(tmp_path)
    users = [str(user) for user in range(1, 3000)]
    order = pl.read_csv(ML_1M / "interactions.csv.gz", infer_schema=False)
    expected = order.filter(pl.col("user").is_in(users)).group_by("user", maintain_order=True)
    in_time = tables.interactions.filter(pl.col("user").is_in(users)).sort(
        "timestamp", maintain_order=True
    )
    got = in_time.group_by("user").agg("item")
    both = expected.agg("item").join(got, on="user", suffix="_got")
    assert both.height == 2999
    assert (both["item"] == both["item_got"]).all()
    items = pl.read_csv(ML_1M / "items.csv.gz", infer_schema=False)
    assert tables.items["item"].to_list() == items["item"].to_list()
    assert tables.items["title"].to_list() == items["title"].to_list()
    assert tables.items["categories"].list.join("|").to_list() == items["categories"].to_list()
