import gzip
import json
from pathlib import Path

import pytest

from palr_jax.data.amazon import read_amazon
from palr_jax.data.config import DataConfig, Source
from palr_jax.data.raw import RawTables
from tests.data.conftest import Complaint, log_of


def review(user: str = "A1", asin: str = "B1", seconds: int = 7) -> dict[str, object]:
    return {"reviewerID": user, "asin": asin, "reviewText": "it's ok", "unixReviewTime": seconds}


REVIEWS = [review("A2", "B2", 9), review(), review("A1", "B2", 8), review("A2", "B3", 1)]
META: list[dict[str, object]] = [
    {
        "asin": "B2",
        "title": "Soap &amp; Water\n for 'all'",
        "related": {"also_bought": ["B7", "B8"], "bought_together": ["B9"]},
        "categories": [["Beauty", "Bath &amp; Body"], ["Beauty", "Hair", "Bath &amp; Body"]],
    },
    {"asin": "B9", "title": "never reviewed", "categories": [["Toys"]]},
    {"asin": "B1", "description": "no title, no categories"},
    {"asin": "B3", "title": " ", "categories": [["Beauty"]]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "amazon"
    path.mkdir()
    write(path / "reviews_Beauty_5.json.gz", [json.dumps(line) for line in REVIEWS])
    write(path / "meta_Beauty.json.gz", [repr(line) for line in META])
    return path


def write(path: Path, lines: list[str]) -> None:
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read(folder: Path) -> RawTables:
    return read_amazon(DataConfig(source="amazon-2014", path=str(folder)))


def test_reviews_and_metadata(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = read(folder)
    assert log_of(tables).rows() == [
        ("A2", "B2", 9),
        ("A1", "B1", 7),
        ("A1", "B2", 8),
        ("A2", "B3", 1),
    ]
    assert tables.items.rows() == [
        ("B2", "Soap & Water for 'all'", ["Bath & Body", "Hair"]),
        ("B1", "B1", []),
        ("B3", "B3", []),
    ]
    assert "2 of 3 reviewed items have no title and go by their id" in capsys.readouterr().err


def test_nothing_is_said_when_all_have_titles(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titled = [{**line, "title": f"t{line['asin']}"} for line in META]
    write(folder / "meta_Beauty.json.gz", [repr(line) for line in titled])
    assert read(folder).items["title"].to_list() == ["tB2", "tB1", "tB3"]
    assert capsys.readouterr().err == ""


def test_the_top_category_stays_when_items_differ_in_it(folder: Path) -> None:
    write(
        folder / "meta_Beauty.json.gz",
        [
            repr({"asin": "B1", "title": "a", "categories": [["Beauty", "Hair"]]}),
            repr({"asin": "B2", "title": "b", "categories": [["Toys", "Hair"]]}),
        ],
    )
    assert read(folder).items["categories"].to_list() == [["Beauty", "Hair"], ["Toys", "Hair"]]


def test_plain_json_and_named_files(folder: Path, tmp_path: Path) -> None:
    expected = read(folder)
    write(tmp_path / "r.json", [json.dumps(line) for line in REVIEWS])
    write(tmp_path / "m.json", [repr(line) for line in META])
    interactions, items = str(tmp_path / "r.json"), str(tmp_path / "m.json")
    tables = read_amazon(DataConfig(source="amazon-2014", interactions=interactions, items=items))
    assert log_of(tables).equals(log_of(expected))
    assert tables.items.equals(expected.items)


def test_a_literal_is_never_run(folder: Path, tmp_path: Path, complaint: Complaint) -> None:
    mark = tmp_path / "ran"
    write(folder / "meta_Beauty.json.gz", [f"{{'asin': 'B1', 'title': open({str(mark)!r}, 'w')}}"])
    assert "line 1: not a JSON object or a Python dict" in complaint(read, folder)
    assert not mark.exists()


def test_path_not_given_or_no_folder(folder: Path, complaint: Complaint) -> None:
    message = complaint(read_amazon, DataConfig(source="amazon-2014"))
    assert message.startswith("data.path is not given")
    assert "is no folder" in complaint(read, folder / "no")


def test_a_folder_without_the_files_or_with_two_of_a_kind(
    folder: Path, complaint: Complaint
) -> None:
    write(folder / "meta_Toys.json", ["{}"])
    message = complaint(read, folder)
    assert "found meta_Beauty.json.gz, meta_Toys.json: set data.items" in message
    (folder / "reviews_Beauty_5.json.gz").unlink()
    message = complaint(read, folder)
    assert "one X_5.json.gz or .jsonl.gz is expected, found none: set data.interactions" in message


def test_unknown_extension(folder: Path, complaint: Complaint) -> None:
    config = DataConfig(source="amazon-2014", path=str(folder), items=str(folder / "meta.csv"))
    assert "meta.csv has an unknown extension" in complaint(read_amazon, config)


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"reviewerID": "A1", ', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ("{'reviewerID': 'A1'}", "not a JSON object"),
        (json.dumps({"asin": "B1", "unixReviewTime": 1}), "no 'reviewerID'"),
        (json.dumps({"reviewerID": "A1", "unixReviewTime": 1}), "no 'asin'"),
        (json.dumps({"reviewerID": "A1", "asin": "B1"}), "no 'unixReviewTime'"),
        (json.dumps({**review(), "unixReviewTime": "soon"}), "an unusable 'unixReviewTime'"),
        (json.dumps({**review(), "asin": ""}), "an unusable 'asin'"),
    ],
)
def test_a_bad_line_of_reviews_is_named(
    folder: Path, complaint: Complaint, line: str, problem: str
) -> None:
    path = folder / "reviews_Beauty_5.json.gz"
    write(path, [json.dumps(REVIEWS[0]), "", line, json.dumps(REVIEWS[1])])
    assert complaint(read, folder).startswith(f"{path}, line 3: {problem}")


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{'asin': 'B1', 'title': 'x", "not a JSON object or a Python dict"),
        ("{'asin': 'B1', 'title': null}", "not a JSON object or a Python dict"),
        ("'asin'", "not a JSON object or a Python dict"),
        ("{'title': 'x'}", "no 'asin'"),
        ("{'asin': 'B1', 'title': 5}", "an unusable 'title'"),
        ("{'asin': 'B1', 'categories': 'x'}", "an unusable 'categories'"),
        ("{'asin': 'B1', 'categories': ['x', ['y']]}", "an unusable 'categories'"),
        ("{'asin': 'B1', 'categories': [[5]]}", "an unusable 'categories'"),
        ("(" * 100_000, "not a JSON object or a Python dict"),
    ],
)
def test_a_bad_line_of_metadata_is_named(
    folder: Path, complaint: Complaint, line: str, problem: str
) -> None:
    path = folder / "meta_Beauty.json.gz"
    write(path, [repr(META[0]), "", line])
    assert complaint(read, folder).startswith(f"{path}, line 3: {problem}")


@pytest.mark.parametrize("name", ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"])
def test_empty_or_cut_off(folder: Path, complaint: Complaint, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert f"{path} is damaged or cut off" in complaint(read, folder)
    path.write_bytes(b"")
    assert complaint(read, folder).startswith(f"{path} is empty: set data.")


@pytest.fixture
def releases(tmp_path: Path) -> dict[str, Path]:
    """Folders of the three releases, with the same reviews and items."""
    rows = [("u1", "B2", 9), ("u2", "B1", 7)]
    old = [{"reviewerID": user, "asin": item, "unixReviewTime": time} for user, item, time in rows]
    new = [
        {"user_id": user, "asin": "X", "parent_asin": item, "timestamp": time, "title": "ok"}
        for user, item, time in rows
    ]
    paths = {"B1": ["Beauty", "Skin Care"], "B2": ["Beauty", "Bath &amp; Body"]}
    files: dict[str, tuple[str, list[str], str, list[str]]] = {
        "amazon-2014": (
            "reviews_X_5.json.gz",
            [json.dumps(line) for line in old],
            "meta_X.json.gz",
            [repr({"asin": i, "title": f"t{i}", "categories": [p]}) for i, p in paths.items()],
        ),
        "amazon-2018": (
            "X_5.json.gz",
            [json.dumps(line) for line in old],
            "meta_X.json.gz",
            [
                json.dumps({"category": p, "title": f"t{i}", "ok": True, "no": None, "asin": i})
                for i, p in paths.items()
            ],
        ),
        "amazon-2023": (
            "X.jsonl",
            [json.dumps(line) for line in new],
            "meta_X.jsonl",
            [
                json.dumps({"categories": p, "title": f"t{i}", "price": None, "parent_asin": i})
                for i, p in paths.items()
            ],
        ),
    }
    folders = {}
    for source, (reviews, log, meta, items) in files.items():
        folders[source] = tmp_path / source
        folders[source].mkdir()
        write(folders[source] / reviews, log)
        write(folders[source] / meta, items)
    return folders


@pytest.mark.parametrize("source", ["amazon-2014", "amazon-2018", "amazon-2023"])
@pytest.mark.parametrize("named", ["amazon-2014", "amazon-2018", "amazon-2023"])
def test_a_line_tells_of_which_release_it_is(
    releases: dict[str, Path], source: str, named: Source
) -> None:
    tables = read_amazon(DataConfig(source=named, path=str(releases[source])))
    assert log_of(tables).rows() == [("u1", "B2", 9), ("u2", "B1", 7)]
    assert tables.items.rows() == [("B1", "tB1", ["Skin Care"]), ("B2", "tB2", ["Bath & Body"])]


def test_the_5_core_is_taken_where_all_reviews_are_there_too(releases: dict[str, Path]) -> None:
    write(releases["amazon-2018"] / "X.json.gz", ["{}"])
    assert len(read(releases["amazon-2018"]).interactions) == 2


def test_of_an_item_with_two_lines_the_first_counts(
    releases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    meta = releases["amazon-2018"] / "meta_X.json.gz"
    lines = [{"asin": "B1", "title": "a"}, {"asin": "B1", "title": "b"}, {"asin": "B2"}]
    write(meta, [json.dumps(line) for line in lines])
    assert read(releases["amazon-2018"]).items["title"].to_list() == ["a", "B2"]
    assert "1 lines repeat an item" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["title", "categories"])
def test_null_is_nothing(releases: dict[str, Path], key: str) -> None:
    meta = releases["amazon-2023"] / "meta_X.jsonl"
    line = {"parent_asin": "B1", "title": "t", "categories": ["a"], key: None}
    write(meta, [json.dumps(line)])
    expected: tuple[str, str, list[str]] = ("B1", "t" if key != "title" else "B1", [])
    assert read(releases["amazon-2023"]).items.rows() == [expected]


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"reviewerID": "\ud800"}, "an unusable 'reviewerID'"),
        ({"reviewerID": "x" * 50_000}, "the id 'xxx"),
        ({"reviewerID": "a\nb"}, "has a control character"),
        ({"asin": 5}, "an unusable 'asin'"),
        ({"asin": None}, "an unusable 'asin'"),
        ({"unixReviewTime": True}, "an unusable 'unixReviewTime'"),
        ({"unixReviewTime": 2**63}, "an unusable 'unixReviewTime'"),
        ({"unixReviewTime": float("nan")}, "an unusable 'unixReviewTime'"),
    ],
)
def test_an_unusable_value_is_named(
    folder: Path, complaint: Complaint, change: dict[str, object], problem: str
) -> None:
    path = folder / "reviews_Beauty_5.json.gz"
    write(path, [json.dumps(review()), "", json.dumps({**review(), **change})])
    message = complaint(read, folder)
    assert message.startswith(f"{path}, line 3: ")
    assert problem in message
    assert len(message) < 300
