from pathlib import Path

import polars as pl
import pytest

from palr_jax.data.histories import Histories, read_histories
from palr_jax.errors import UserError

RIGHT = Histories(["b", "7"], [["Heat (1995)", "Babe (1995)"], ["Heat (1995)"]])


def test_all_forms_say_the_same(tmp_path: Path) -> None:
    rows = {
        "user": ["b", "7", "b"],
        "item": ["Babe (1995)", "Heat (1995)", "Heat (1995)"],
        "timestamp": [20, 5, 10],
    }
    table = pl.DataFrame(rows)
    table.write_csv(tmp_path / "h.csv")
    table.write_parquet(tmp_path / "h.parquet")
    table[[2, 1, 0]].drop("timestamp").write_csv(tmp_path / "in-order.csv")
    (tmp_path / "h.jsonl").write_text(
        '{"user": "b", "history": ["Heat (1995)", "Babe (1995)"]}\n\n'
        '{"user": 7, "history": ["Heat (1995)"], "beside": 1}\n'
    )
    for name in ("h.csv", "h.parquet", "in-order.csv", "h.jsonl"):
        assert read_histories(tmp_path / name) == RIGHT, name


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1, 1], "item": [30, 4]}).write_parquet(tmp_path / "h.parquet")
    (tmp_path / "h.jsonl").write_text('{"user": 1, "history": [30, "4"]}')
    for name in ("h.parquet", "h.jsonl"):
        assert read_histories(tmp_path / name) == Histories(["1"], [["30", "4"]])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1: no JSON"),
        ("[1]", "line 1: an object is expected"),
        ('{"user": "a"}', "line 1: .* is expected"),
        ('{"user": true, "history": []}', "line 1: .* is expected"),
        ('{"user": "a", "history": [1.5]}', "1.5 in the history is no text"),
        ('{"user": "a", "history": []}\n{"user": "a", "history": []}', "line 2: .* appears twice"),
        ("", "is empty"),
    ],
)
def test_a_line_of_another_form(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "h.jsonl").write_text(line)
    with pytest.raises(UserError, match=complaint) as caught:
        read_histories(tmp_path / "h.jsonl")
    assert "\n" not in str(caught.value)


def test_a_table_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("user,film\na,Heat\n")
    with pytest.raises(UserError, match="has no column 'item'"):
        read_histories(tmp_path / "h.csv")
    with pytest.raises(UserError, match="unknown extension"):
        read_histories(tmp_path / "h.txt")
    with pytest.raises(UserError, match="is missing"):
        read_histories(tmp_path / "none.csv")
