"""Parts of a table are the same as the table in one file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palr_jax.data import parquet_file
from palr_jax.data.catalog import unique_titles
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.prepare import Prepared, files, prepare, save
from palr_jax.data.table import read_table
from tests.data.conftest import Complaint, log_of

FAST = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WRITE: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "csv": pl.DataFrame.write_csv,
    "parquet": pl.DataFrame.write_parquet,
}
LOG = {"user": ["ann", "bob", "ann"], "item": ["7", "1", "1"], "timestamp": [5, 3, 3]}
ITEMS = {"item": ["1", "7"], "title": ["Nails", "Pot"], "categories": ["Hair|Nails", None]}

# A 3-core for sure: user u has the items u … u + 3 of a ring of nine; some have them in one second.
RING = [(user, (user + step) % 9, step // 2) for user in range(9) for step in range(4)]
EXTRA = st.tuples(st.integers(0, 14), st.integers(0, 12), st.integers(0, 3))
TITLE = st.sampled_from(["Emma", "Emma [i1]", "Eros", " Po\tt", "Zoe\u0301", "[x]", "Ω Ω"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions in any order, with repeats and ties, and the titles of their items."""
    rows = draw(st.permutations(RING + draw(st.lists(EXTRA, max_size=12))))
    as_text = draw(st.booleans())
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    user: list[Any] = [f"u{user}" for user in users] if as_text else users
    item: list[Any] = [f"i{item}" for item in items] if as_text else items
    log = pl.DataFrame({"user": user, "item": item, "timestamp": times})
    ids = draw(st.permutations(range(13)))
    titles = draw(st.lists(TITLE, min_size=13, max_size=13))
    kinds = draw(st.lists(st.sampled_from(["a|b", "", "b|a|b", "None"]), min_size=13, max_size=13))
    named = [f"i{item}" for item in ids] if as_text else list(ids)
    return log, pl.DataFrame({"item": named, "title": titles, "categories": kinds})


def write(folder: Path, frame: pl.DataFrame, cuts: list[int], ends: str) -> str:
    """Writes the rows between neighbouring cuts as parts, some of which may have none."""
    folder.mkdir()
    bounds = [0, *sorted(cut % (len(frame) + 1) for cut in cuts), len(frame)]
    for part, (start, end) in enumerate(pairwise(bounds)):
        WRITE[ends](frame[start:end], folder / f"part-{part:02}.{ends}")
    return str(folder)


def expected(log: pl.DataFrame, items: pl.DataFrame) -> tuple[dict[str, list[str]], list[str]]:
    """The sequence of each user that remains, in order, and the items: the rules, row by row."""
    seen: dict[tuple[str, str], None] = {}
    for user, item, _ in sorted(log.rows(), key=lambda row: row[2]):
        seen.setdefault((str(user), str(item)))
    pairs = list(seen)
    while True:
        users, chosen = (Counter(column) for column in zip(*pairs, strict=True))
        kept = [pair for pair in pairs if users[pair[0]] >= 3 and chosen[pair[1]] >= 3]
        if kept == pairs:
            break
        pairs = kept
    order = [user for user in dict.fromkeys(map(str, log["user"])) if user in users]
    sequences = {user: [item for who, item in pairs if who == user] for user in order}
    return sequences, [item for item in map(str, items["item"]) if item in chosen]


def sequences_of(prepared: Prepared) -> dict[str, list[str]]:
    ids, histories = prepared.items["item"].to_list(), prepared.split.histories("all")
    users = prepared.split.user_ids.tolist()
    return {user: [ids[i] for i in row] for user, row in zip(users, histories, strict=True)}


@pytest.mark.parametrize("ends", WRITE)
@FAST
@given(
    made=tables(),
    log_cuts=st.lists(st.integers(0, 99), max_size=4),
    item_cuts=st.lists(st.integers(0, 99), max_size=3),
    piece=st.integers(8, 60),
)
def test_any_cut_gives_the_bytes_of_the_single_file(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
    made: tuple[pl.DataFrame, pl.DataFrame],
    log_cuts: list[int],
    item_cuts: list[int],
    piece: int,
) -> None:
    monkeypatch.setattr(parquet_file, "_PIECE_ROWS", piece)
    folder, (log, items) = tmp_path_factory.mktemp("any"), made
    whole = DataConfig(
        source="table",
        interactions=f"{write(folder / 'log', log, [], ends)}/part-00.{ends}",
        items=f"{write(folder / 'items', items, [], ends)}/part-00.{ends}",
        min_count=3,
        min_users=1,
    )
    parts = replace(
        whole,
        interactions=write(folder / "logs", log, log_cuts, ends),
        items=f"{write(folder / 'many', items, item_cuts, ends)}/part-*.{ends}",
    )
    prepared = prepare(whole)
    save(prepared, folder / "one")
    save(prepare(parts), folder / "two")
    for one, two in zip(files(folder / "one"), files(folder / "two"), strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name

    sequences, ids = expected(log, items)
    assert sequences_of(prepared) == sequences
    assert list(sequences_of(prepared)) == list(sequences)
    assert prepared.items["item"].to_list() == ids
    forms = {" Po\tt": "Po t", "Zoe\u0301": "Zoé"}
    rows = {str(item): (title, kinds) for item, title, kinds in items.rows()}
    titles = [forms.get(rows[item][0], rows[item][0]) for item in ids]
    assert prepared.items["title"].to_list() == list(unique_titles(titles, ids))
    lists: dict[str, list[str]] = {"a|b": ["a", "b"], "b|a|b": ["b", "a"], "": [], "None": []}
    assert prepared.items["categories"].to_list() == [lists[rows[item][1]] for item in ids]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """One part of each table, in folders to which tests add others."""
    log = write(tmp_path / "log", pl.DataFrame(LOG), [], "parquet")
    items = write(tmp_path / "items", pl.DataFrame(ITEMS), [], "parquet")
    return DataConfig(source="table", interactions=log, items=items)


def texts(tmp_path: Path, *parts: str) -> str:
    """The folder of CSV parts with these lines after the header; "" writes an empty file."""
    (tmp_path / "texts").mkdir()
    for number, lines in enumerate(parts):
        text = f"user,item,timestamp\n{lines}" if lines else ""
        (tmp_path / "texts" / f"part-{number}.csv").write_text(text)
    return str(tmp_path / "texts")


def test_names_that_begin_with_a_dot_or_an_underscore_are_no_parts(
    config: DataConfig, tmp_path: Path
) -> None:
    for name in ("_SUCCESS", ".part-00.parquet.crc"):
        (tmp_path / "log" / name).write_text("x")
    assert log_of(read_table(config)).rows() == [("ann", "7", 5), ("bob", "1", 3), ("ann", "1", 3)]


@pytest.mark.parametrize("key", ["interactions", "items"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [("empty", "holds no files"), ("log/*.csv", "matches no files"), ("missing", "is missing")],
)
def test_no_parts(
    config: DataConfig, complaint: Complaint, tmp_path: Path, key: str, name: str, problem: str
) -> None:
    (tmp_path / "empty").mkdir()
    given: dict[str, Any] = {key: str(tmp_path / name)}
    message = complaint(read_table, replace(config, **given))
    assert message.startswith(f"{tmp_path / name} {problem}")
    assert f"set data.{key} to" in message


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"user": ["c"], "item": ["1"]}, "has the columns 'user', 'item', but"),
        ({"user": ["c"], "timestamp": [1], "item": ["1"]}, "has the columns 'user', 'timestamp',"),
        ({"user": [3], "item": ["1"], "timestamp": [1]}, "column 'user' is of type Int64, but in"),
        ({"user": ["c"], "item": ["1"], "timestamp": [1.5]}, "column 'timestamp' is of type Float"),
        ({"user": ["c", None], "item": ["1", "2"], "timestamp": [1, 2]}, "row 2: no value in col"),
        ({"user": ["c"], "item": ["a\nb"], "timestamp": [1]}, "row 1: the id 'a\\nb' in column"),
        ({"user": ["c"], "item": ["1"], "timestamp": [None]}, "column 'timestamp' is of type Null"),
    ],
)
def test_a_part_that_differs_or_is_wrong_is_named(
    config: DataConfig, complaint: Complaint, tmp_path: Path, other: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "log" / "part-01.parquet"
    pl.DataFrame(other).write_parquet(path)
    message = complaint(read_table, config)
    assert message.startswith(str(path))
    assert problem in message


def test_a_damaged_part_is_named(config: DataConfig, complaint: Complaint, tmp_path: Path) -> None:
    path = tmp_path / "log" / "part-01.parquet"
    path.write_bytes((tmp_path / "log" / "part-00.parquet").read_bytes()[:-9])
    assert complaint(read_table, config).startswith(f"{path} is not a complete Parquet file")
    path.rename(path.with_suffix(".txt"))
    assert complaint(read_table, config).startswith(f"{path.with_suffix('.txt')} has an unknown")


@pytest.mark.parametrize("faulty", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("cid,,4", "line 4: no value in column 'item'"),
        ("nan,1,4", "line 4: no value in column 'user'"),
        ("9,1,soon", "line 4: the timestamp 'soon' is not a number"),
        ("9,1,2014-01-01", "line 4: the timestamp '2014-01-01' is not a number"),
        ("9,1", "line 4: 2 fields where the first line has 3"),
    ],
)
def test_the_line_of_a_part_is_named(
    config: DataConfig, complaint: Complaint, tmp_path: Path, faulty: int, line: str, problem: str
) -> None:
    good = "7,1,3\n\n"
    parts = [good + line if part == faulty else "\n" if part == 2 else good for part in range(4)]
    config = replace(config, interactions=texts(tmp_path, *parts))
    message = complaint(read_table, config)
    assert message.startswith(f"{tmp_path}/texts/part-{faulty}.csv, {problem}")


def test_a_row_behind_the_first_piece_is_named(
    config: DataConfig, complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "_PIECE_ROWS", 2)
    path = tmp_path / "log" / "part-01.parquet"
    frame = pl.DataFrame({"user": [*"abcde"], "item": ["1"] * 5, "timestamp": [1, 2, 3, None, 5]})
    frame.write_parquet(path)
    assert complaint(read_table, config).startswith(f"{path}, row 4: no value in column 'timesta")


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        # All ids end in ".0", or none is changed.
        (["7.0,1.0,3\n", "8.0,2.0,4\n"], [("7", "1", 3), ("8", "2", 4)]),
        (["7.0,1.0,3\n", "8.5,2,4\n"], [("7.0", "1.0", 3), ("8.5", "2", 4)]),
        # "nan" is an id unless all others are numbers.
        (["nan,1,3\n", "ann,1,3\n"], [("nan", "1", 3), ("ann", "1", 3)]),
        (["a,1,3\n", "a,2,4.5\n"], [("a", "1", 3.0), ("a", "2", 4.5)]),
        (["a,1,3.5\n", "a,2,007\n"], [("a", "1", 3.5), ("a", "2", 7.0)]),
        (["a,1,1970-01-01\n", " a ,1,1970-01-02\n"], [("a", "1", 0), ("a", "1", 86_400_000_000)]),
        (["\n", "a,1,3\n", "\n"], [("a", "1", 3)]),
    ],
)
def test_rules_of_whole_columns_hold_over_all_parts(
    config: DataConfig, tmp_path: Path, parts: list[str], rows: list[tuple[str, str, float]]
) -> None:
    log = log_of(read_table(replace(config, interactions=texts(tmp_path, *parts))))
    assert log.rows() == rows
    assert log["timestamp"].dtype == (pl.Float64 if isinstance(rows[0][2], float) else pl.Int64)


def test_only_headers_and_an_empty_part(
    config: DataConfig, complaint: Complaint, tmp_path: Path
) -> None:
    config = replace(config, interactions=texts(tmp_path, "\n", "\n"))
    message = complaint(read_table, config)
    assert message.startswith(f"{tmp_path}/texts holds no rows: set data.interactions to")
    (tmp_path / "texts" / "part-1.csv").write_text("")
    assert complaint(read_table, config).startswith(f"{tmp_path}/texts/part-1.csv is empty")


def test_parts_without_headers(config: DataConfig, complaint: Complaint, tmp_path: Path) -> None:
    folder = Path(texts(tmp_path, "x"))
    for number, text in enumerate(["2;1;3\n", "1;2;4\n"]):
        (folder / f"part-{number}.csv").write_text(text)
    columns = Columns(user="1", item="2", timestamp="3", id="item")
    config = replace(config, interactions=str(folder), columns=columns)
    assert log_of(read_table(config)).rows() == [("2", "1", 3), ("1", "2", 4)]
    (folder / "part-2.csv").write_text("1;2;4;5\n")
    assert "part-2.csv has the 4 columns, but" in complaint(read_table, config)


def test_without_timestamps_the_order_is_that_of_the_parts(
    config: DataConfig, tmp_path: Path
) -> None:
    write(tmp_path / "bare", pl.DataFrame(LOG).drop("timestamp"), [2], "parquet")
    log = log_of(read_table(replace(config, interactions=str(tmp_path / "bare"))))
    assert log.rows() == [("ann", "7", 0), ("bob", "1", 1), ("ann", "1", 2)]


def test_a_missing_file_of_items_is_found_before_the_interactions_are_read(
    config: DataConfig, complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palr_jax.data.table.read_log", lambda rows: pytest.fail("was read"))
    path = str(tmp_path / "no.parquet")
    assert f"{path} is missing" in complaint(read_table, replace(config, items=path))
