"""report.html: the table of results, the pictures, the curves and examples of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from palr_jax.evaluation.group_pictures import lift_part, moves_part, reliability_part
from palr_jax.evaluation.html_page import page
from palr_jax.evaluation.html_tables import Cell, escaped, number, table
from palr_jax.evaluation.numbers import short, signed
from palr_jax.evaluation.paper import PAPER
from palr_jax.evaluation.pictures import Chart, curves
from palr_jax.evaluation.results import ControlRow, ResultRow, Results
from palr_jax.json_types import JsonObject

METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")


@dataclass(frozen=True)
class SlateExample:
    """One user's prompt and slates.

    Attributes:
        user: id in the source.
        prompt: text of the prompt.
        target: title of the test item.
        slates: row name → titles in order.
    """

    user: str
    prompt: str
    target: str
    slates: dict[str, list[str]]


def render(
    results: Results,
    charts: Sequence[Chart],
    instructions: str,
    examples: Sequence[SlateExample],
) -> str:
    """The page as HTML.

    Args:
        results: the content of results.json.
        charts: training curves of retriever and rankers.
        instructions: statistics and examples of the instruction data.
        examples: slates of some users.
    """
    title = f"PALR on {results['dataset']}"
    training = (
        f"{''.join(map(curves, charts))}<details><summary>Instructions</summary>"
        f"<pre>{escaped(instructions)}</pre></details>"
    )
    sections = [
        ("Results", _results(results)),
        *_group_sections(results["groups"]),
        ("Protocol", _protocol(results["protocol"])),
        ("The paper's Table 2", _paper_table()),
        ("Training", training),
        ("Examples", "".join(map(_example, examples))),
    ]
    return page(title, sections)


def _group_sections(groups: JsonObject) -> list[tuple[str, str]]:
    sections = [("Lift by group", lift_part(groups))]
    if "moves" in groups:
        sections.append(("Ranks of the test item", moves_part(groups)))
        sections.append(("Reliability of P(candidate)", reliability_part(groups)))
    return sections


def _results(results: Results) -> str:
    caption = "Test users; differences of NDCG@10 with their 95% interval. Press a title to sort."
    rows = [_result_cells(results, row) for row in results["rows"]]
    controls = _controls_table(results["controls"]) if "controls" in results else ""
    return f"{_findings(results)}{table(caption, header(results), rows, 'sortable')}{controls}"


def _findings(results: Results) -> str:
    """A sentence for each ranker of the pictures."""
    by_model = {row["model"]: row for row in results["rows"]}
    baselines = [results["groups"]["baseline"], results["groups"]["models"][0]]
    sentences = []
    for model in results["groups"]["models"][1:]:
        row = by_model[model]
        against = [
            f"{_change(row['NDCG@10'], by_model[other]['NDCG@10'])} {escaped(other)} "
            f"({_verdict(row['ci95'][other]['NDCG@10'])})"
            for other in baselines
        ]
        value = short(row["NDCG@10"])
        sentences.append(
            f"<li><b>{escaped(model)}</b>: NDCG@10 {value}; {'; '.join(against)}.</li>"
        )
    return f"<ul>{''.join(sentences)}</ul>"


def _change(mine: float, theirs: float) -> str:
    if not theirs:
        return "above" if mine else "equal to"
    return f"{abs(mine / theirs - 1):.1%} {'above' if mine >= theirs else 'below'}"


def _verdict(bounds: Sequence[float]) -> str:
    low, high = map(signed, bounds)
    meaning = "not significant" if bounds[0] <= 0 <= bounds[1] else "significant"
    return f"95% interval of the difference {low} to {high}: {meaning}"


def header(results: Results) -> list[str]:
    """The column titles of the results table."""
    return ["model", "users", *METRICS, *(f"NDCG@10 − {name}, 95%" for name in compared(results))]


def _result_cells(results: Results, row: ResultRow) -> list[Cell | str]:
    """One row of results.json as the cells of the results table."""
    intervals = [row["ci95"].get(name, {}).get("NDCG@10") for name in compared(results)]
    return [
        row["model"],
        Cell(f"{row['users']:,}", row["users"]),
        *(number(row[name]) for name in METRICS),
        *(
            Cell(f"{signed(bounds[0])} to {signed(bounds[1])}", sum(bounds) / 2) if bounds else ""
            for bounds in intervals
        ),
    ]


def compared(results: Results) -> list[str]:
    """The baseline rows of the confidence intervals, in the order of the table."""
    names = {name for row in results["rows"] for name in row["ci95"]}
    return [row["model"] for row in results["rows"] if row["model"] in names]


def _controls_table(rows: Sequence[ControlRow]) -> str:
    return "<h3>Controls</h3>" + table(
        "PALR_v2 where a part of what it reads is disturbed.",
        ["control", "users", "HR@10", "NDCG@10"],
        [
            [
                row["control"],
                Cell(f"{row['users']:,}", row["users"]),
                number(row["HR@10"]),
                number(row["NDCG@10"]),
            ]
            for row in rows
        ],
        "sortable",
    )


def _protocol(protocol: dict[str, str]) -> str:
    lines = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in protocol.items()
    )
    return f"<dl>{lines}</dl>"


def _paper_table() -> str:
    rows = [
        [model, *(" / ".join(map(short, PAPER[data][model])) for data in PAPER)]
        for model in PAPER["ML-1M"]
    ]
    return table(
        "HR@10 / NDCG@10 as published, on the paper's own data sets.", ["model", *PAPER], rows
    )


def _example(example: SlateExample) -> str:
    width = max(map(len, example.slates.values()), default=0)
    rows: list[list[Cell | str]] = []
    for index in range(width):
        titles = [slate[index] if index < len(slate) else "" for slate in example.slates.values()]
        rows.append(
            [f"{index + 1}", *(Cell(title, is_hit=title == example.target) for title in titles)]
        )
    caption = f"Slates of user {example.user}"
    return (
        f"<h3>User {escaped(example.user)}</h3><p>Test item: <b>{escaped(example.target)}</b></p>"
        f"{table(caption, ['rank', *example.slates], rows, 'words')}"
        f"<details><summary>Prompt</summary><pre>{escaped(example.prompt)}</pre></details>"
    )
