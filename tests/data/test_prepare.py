from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palr_jax.data.config import DataConfig
from palr_jax.data.prepare import Prepared, load, prepare, save
from tests.data.conftest import Complaint
from tests.locations import SHARED

DATA = SHARED / "data"
needs_shared = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared")

NUM_USERS, NUM_ITEMS, LENGTH = 12, 24, 6


def ring() -> list[tuple[str, str, int]]:
    """User u has the items 2u, 2u + 1, … of a ring, so that each item has three users."""
    return [
        (f"u{user}", f"i{(2 * user + step) % NUM_ITEMS}", 100 + step)
        for user in range(NUM_USERS)
        for step in range(LENGTH)
    ]


def write(
    folder: Path, rows: list[tuple[str, str, int]], items: list[str] | None = None
) -> DataConfig:
    log = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "log.csv").write_text("user,item,timestamp\n" + log)
    if items is None:
        items = [f"i{item},Title {item},a|b" for item in range(NUM_ITEMS)]
    (folder / "items.csv").write_text("item,title,categories\n" + "\n".join(items) + "\n")
    return DataConfig(
        source="table",
        interactions=str(folder / "log.csv"),
        items=str(folder / "items.csv"),
        min_count=3,
    )


def sequences(prepared: Prepared) -> dict[str, list[str]]:
    ids, split = prepared.catalog.item_ids, prepared.split
    return {
        str(user): ids[[*split.histories("test")[row], split.test_U[row]]].tolist()
        for row, user in enumerate(split.user_ids)
    }


def test_the_whole_way(tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path, ring()))
    assert prepared.split.user_ids.tolist() == [f"u{user}" for user in range(NUM_USERS)]
    assert prepared.catalog.item_ids.tolist() == [f"i{item}" for item in range(NUM_ITEMS)]
    assert prepared.catalog.titles[7] == "Title 7"
    assert prepared.catalog.categories[7] == ("a", "b")
    assert prepared.split.num_items == len(prepared.catalog) == NUM_ITEMS
    assert prepared.num_interactions == NUM_USERS * LENGTH
    assert sequences(prepared)["u3"] == ["i6", "i7", "i8", "i9", "i10", "i11"]
    assert prepared.split.targets("validation")[3] == 10


def test_users_stand_as_in_the_log_and_items_as_in_their_file(tmp_path: Path) -> None:
    straight = prepare(write(tmp_path, ring()))
    items = [f"i{item},Title {item},x" for item in reversed(range(NUM_ITEMS))]
    turned = prepare(write(tmp_path, ring()[::-1], items))
    assert turned.split.user_ids.tolist() == straight.split.user_ids.tolist()[::-1]
    assert turned.catalog.item_ids.tolist() == straight.catalog.item_ids.tolist()[::-1]
    assert sequences(turned) == sequences(straight)


def test_ties_in_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [(user, item, 0) for user, item, _ in ring()]
    rng = np.random.default_rng(0)
    shuffled = [rows[row] for row in rng.permutation(len(rows))]
    expected = {user: [item for who, item, _ in shuffled if who == user] for user, _, _ in rows}
    assert sequences(prepare(write(tmp_path, shuffled))) == expected


def test_of_repeats_the_first_in_time_stays(tmp_path: Path) -> None:
    # In the file the late repeat of i6 comes first, so file order alone would keep the wrong one.
    rows = [("u3", "i6", 999), *ring(), ("u3", "i7", 999)]
    prepared = prepare(write(tmp_path, rows))
    assert sequences(prepared)["u3"] == ["i6", "i7", "i8", "i9", "i10", "i11"]
    assert prepared.num_interactions == NUM_USERS * LENGTH


def test_repeats_do_not_count_for_the_core(tmp_path: Path) -> None:
    rows = [*ring(), ("guest", "i1", 1), ("guest", "i2", 2), ("guest", "i1", 3)]
    assert "guest" not in sequences(prepare(write(tmp_path, rows)))


def test_the_core_is_iterative(tmp_path: Path) -> None:
    # The guest has three items, but "rare" has too few users; its removal removes the guest.
    rows = [*ring(), ("guest", "rare", 1), ("guest", "i1", 2), ("guest", "i2", 3)]
    prepared = prepare(write(tmp_path, rows))
    assert "guest" not in sequences(prepared)
    assert "rare" not in prepared.catalog.item_ids


def test_rows_of_items_that_do_not_remain_are_dropped(tmp_path: Path) -> None:
    items = ["never,Never seen,x"] + [f"i{item},Same title,x" for item in range(NUM_ITEMS)]
    catalog = prepare(write(tmp_path, ring(), [*items, "never2,,"])).catalog
    assert catalog.item_ids.tolist() == [f"i{item}" for item in range(NUM_ITEMS)]
    assert catalog.titles[:2] == ("Same title", "Same title [i1]")
    assert len(set(catalog.titles)) == NUM_ITEMS


def test_an_unknown_item_counts_for_the_core_until_it_falls(tmp_path: Path) -> None:
    rows = [*ring(), ("u0", "unknown", 5), ("u1", "unknown", 5)]
    assert "unknown" not in prepare(write(tmp_path, rows)).catalog.item_ids


@pytest.mark.parametrize("row", [None, "unknown,,x", "unknown,   ,x"])
def test_an_item_without_a_title(tmp_path: Path, complaint: Complaint, row: str | None) -> None:
    rows = [*ring(), *[(f"u{user}", "unknown", 5) for user in range(3)]]
    items = [f"i{item},Title {item},x" for item in range(NUM_ITEMS)] + ([row] if row else [])
    message = complaint(prepare, write(tmp_path, rows, items))
    assert message.startswith(f"{tmp_path / 'items.csv'}: item 'unknown'")
    assert "an item without a title" in message


def test_an_item_with_two_rows(tmp_path: Path, complaint: Complaint) -> None:
    items = [f"i{item},Title {item},x" for item in [*range(NUM_ITEMS), 5]]
    message = complaint(prepare, write(tmp_path, ring(), items))
    assert message.startswith(f"{tmp_path / 'items.csv'}: item 'i5' has two rows")


def test_too_few_users(tmp_path: Path, complaint: Complaint) -> None:
    config = write(tmp_path, ring())
    message = complaint(prepare, replace(config, min_users=NUM_USERS + 1))
    assert "12 users and 24 items remain after the 3-core" in message
    assert "lower data.min_count" in message
    assert "0 users and 0 items" in complaint(prepare, replace(config, min_count=5))


def test_a_user_may_have_almost_all_items(tmp_path: Path) -> None:
    rows = ring() + [("u0", f"i{item}", 500) for item in range(LENGTH, NUM_ITEMS)]
    assert len(sequences(prepare(write(tmp_path, rows)))["u0"]) == NUM_ITEMS


def assert_same(one: Prepared, two: Prepared) -> None:
    assert one.split.num_items == two.split.num_items
    for first, second in [
        (one.split.train.values_N, two.split.train.values_N),
        (one.split.train.offsets_R1, two.split.train.offsets_R1),
        (one.split.validation_U, two.split.validation_U),
        (one.split.test_U, two.split.test_U),
        (one.split.user_ids, two.split.user_ids),
        (one.catalog.item_ids, two.catalog.item_ids),
    ]:
        np.testing.assert_array_equal(first, second, strict=True)
    assert one.catalog.titles == two.catalog.titles
    assert one.catalog.categories == two.catalog.categories


def test_save_and_load(tmp_path: Path) -> None:
    names = {"u1": "Zoë 😀", "u2": "007", "i3": "ид", "i4": "1e5"}
    rows = [(names.get(user, user), names.get(item, item), time) for user, item, time in ring()]
    items = [f"i{item},Title {item}," for item in range(NUM_ITEMS)]
    items[3:5] = ['ид,"a ""quoted"", title",x|y', "1e5,null,x"]
    prepared = prepare(write(tmp_path, rows, items))
    assert {"Zoë 😀", "007"} <= set(prepared.split.user_ids)
    assert prepared.catalog.titles[3:5] == ('a "quoted", title', "null")
    save(prepared, tmp_path / "data")
    assert_same(load(tmp_path / "data"), prepared)
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"split.npz", "catalog.parquet"}


@pytest.mark.parametrize("name", ["split.npz", "catalog.parquet"])
def test_load_names_what_is_missing_or_damaged(
    tmp_path: Path, complaint: Complaint, name: str
) -> None:
    save(prepare(write(tmp_path, ring())), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path} cannot be read" in complaint(load, tmp_path)
    path.unlink()
    assert f"{path} is missing" in complaint(load, tmp_path)


def test_load_refuses_files_of_two_runs(tmp_path: Path, complaint: Complaint) -> None:
    save(prepare(write(tmp_path, ring())), tmp_path / "one")
    rows = [*ring(), *[(f"u{user}", "extra", 5) for user in range(3)]]
    items = [f"i{item},Title {item},x" for item in range(NUM_ITEMS)]
    save(prepare(write(tmp_path, rows, [*items, "extra,Extra,x"])), tmp_path / "two")
    (tmp_path / "one" / "catalog.parquet").replace(tmp_path / "two" / "catalog.parquet")
    assert "files of two runs" in complaint(load, tmp_path / "two")


def test_load_names_an_array_that_is_not_there(tmp_path: Path, complaint: Complaint) -> None:
    save(prepare(write(tmp_path, ring())), tmp_path)
    np.savez(tmp_path / "split.npz", other=np.zeros(1))
    assert "split.npz cannot be read (it lacks train_N)" in complaint(load, tmp_path)


def counts(prepared: Prepared) -> tuple[int, int, int]:
    return prepared.split.num_users, len(prepared.catalog), prepared.num_interactions


def test_ml_latest_small(capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare(DataConfig())
    assert counts(prepared) == (610, 3_650, 90_274)
    assert prepared.catalog.titles[0] == "Toy Story (1995)"
    said = capsys.readouterr().err
    assert "100,836 interactions, of which 0 are repeats and 10,562 fall" in said


@needs_shared
@pytest.mark.parametrize(
    "name, expected",
    [("beauty", (22_363, 12_101, 198_502)), ("ml-1m", (6_040, 3_416, 999_611))],
)
def test_counts_of_the_paper(name: str, expected: tuple[int, int, int]) -> None:
    folder = DATA / name
    config = DataConfig(
        source="table",
        interactions=str(folder / "interactions.csv.gz"),
        items=str(folder / "items.csv.gz"),
    )
    prepared = prepare(config)
    assert counts(prepared) == expected
    assert len(set(prepared.catalog.titles)) == expected[1]
