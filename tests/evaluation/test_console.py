"""The table of `palr run` at every width: a number is shown whole or not at all."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from palr_jax.evaluation.console import print_results, print_retrievers
from palr_jax.evaluation.metrics import summary
from palr_jax.evaluation.paper import PAPER
from palr_jax.evaluation.results import Results

NAMES = ("BERT4Rec", "BERT4Rec + popularity", "PALR_v1", "PALR_v2 with prior", "PALR_v2 + BERT4Rec")
INTERVAL = [-0.012345, 0.023456]


def results() -> Results:
    rows = []
    for number, name in enumerate(NAMES):
        others = NAMES[: min(number, 2)] if number else ()
        rank_U = np.random.default_rng(number).integers(1, 30, 6040)
        rows.append(
            {
                "model": name,
                "users": 6040,
                **{key: round(value, 6) for key, value in summary(rank_U).items()},
                "ci95": {other: {"HR@10": INTERVAL, "NDCG@10": INTERVAL} for other in others},
            }
        )
    protocol = {"rank": "1 + items [scored] strictly higher " * 5}
    return {"dataset": "ml-1m", "protocol": protocol, "rows": rows, "groups": {}}


def shown(width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    print_results(results(), Console(file=file, width=width))
    file.seek(0)
    return file.read().splitlines()


def short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 130, 200])
def test_numbers_are_whole_at_every_width(width: int) -> None:
    lines = shown(width)
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith(("rank:", "(all")))]
    assert max(map(len, table)) <= width
    assert "…" not in "".join(table)
    text = "\n".join(table)
    for row in results()["rows"]:
        assert short(row["NDCG@10"]) in text
    whole = {short(row[key]) for row in results()["rows"] for key in summary(np.ones(1))}
    whole |= {"-.0123", "+.0235"}
    assert set(re.findall(r"[+-]?\.\d*", text)) <= whole


@pytest.mark.parametrize(
    ("width", "columns", "intervals"),
    [(40, {"NDCG@10"}, 0), (64, {"HR@10", "NDCG@10"}, 1), (80, {"HR@10", "NDCG@10"}, 2),
     (130, {"users", "HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"}, 2)],
)  # fmt: skip
def test_a_wider_console_shows_more(width: int, columns: set[str], intervals: int) -> None:
    lines = shown(width)
    titles = next(line for line in lines if line.startswith("model")).split()
    assert columns <= set(titles)
    last = next(line for line in lines if line.startswith("PALR_v2 + B"))
    assert last.count(" to ") == intervals
    assert any(line.startswith("(all columns") for line in lines) == (width < 130)


def test_an_output_of_ascii_alone_is_enough_for_the_table() -> None:
    assert any("PALR_v2 + BERT4Rec" in line for line in shown(130, "ascii"))


def test_the_protocol_is_printed_as_it_is() -> None:
    assert "rank: " + results()["protocol"]["rank"] in shown(60)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_retrievers_are_whole_too(width: int) -> None:
    metrics = summary(np.arange(1, 31))
    rows = [
        {"model": name, "users": 30, **metrics, "Recall@50": 0.5, "coverage@10": 0.25,
         "epochs": 1200, "minutes": 12.34}
        for name in PAPER["ML-1M"]
    ]  # fmt: skip
    file = io.StringIO()
    print_retrievers(rows, "ml-1m", Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    table = [line for line in lines if line.startswith("SASRec")]
    assert short(metrics["NDCG@10"]) in table[0]
    assert (".1978 / .1192" in table[0]) == (width >= 80)
    assert ("1,200" in table[0] and "12.3" in table[0]) == (width == 200)
    assert "…" not in file.getvalue()
