"""report.html: one self-contained page with the table, the curves and examples."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from palr_jax.evaluation.paper import PAPER
from palr_jax.evaluation.results import ControlRow, ResultRow, Results, RetrieverRow

METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #57606a; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; white-space: pre-wrap;
      font-size: 13px; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
.hit { background: #dafbe1; font-weight: 600; } .note { color: #57606a; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        label: label in the legend.
        x: steps or epochs.
        y: values.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A chart of curves with common axes."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]


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
    protocol = "".join(
        f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>"
        for key, value in results["protocol"].items()
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        _results_table(results),
        *(
            ["<h2>Controls</h2>", _controls_table(results["controls"])]
            if "controls" in results
            else []
        ),
        "<h2>Protocol</h2>",
        f"<dl>{protocol}</dl>",
        "<h2>The paper's Table 2</h2>",
        "<p class='note'>HR@10 / NDCG@10 as published, on the paper's own data sets.</p>",
        _paper_table(),
        "<h2>Training</h2>",
        *(_image(chart) for chart in charts if chart.curves),
        f"<details><summary>Instructions</summary><pre>{_text(instructions)}</pre></details>",
        "<h2>Examples</h2>",
        *(_example(example) for example in examples),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{_text(title)}</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _results_table(results: Results) -> str:
    return _table(header(results), [cells(results, row) for row in results["rows"]])


def header(results: Results) -> list[str]:
    """The column titles of the results table."""
    return ["model", "users", *METRICS, *(f"NDCG@10 − {name}, 95%" for name in _compared(results))]


def cells(results: Results, row: ResultRow) -> list[str]:
    """One row of results.json as the cells of the results table."""
    intervals = [row["ci95"].get(name, {}).get("NDCG@10") for name in _compared(results)]
    return [
        row["model"],
        f"{row['users']:,}",
        *(f"{row[name]:.4f}" for name in METRICS),
        *(f"{bounds[0]:+.4f} … {bounds[1]:+.4f}" if bounds else "" for bounds in intervals),
    ]


def _compared(results: Results) -> list[str]:
    """The baseline rows of the confidence intervals, in the order of the table."""
    names = {name for row in results["rows"] for name in row["ci95"]}
    return [row["model"] for row in results["rows"] if row["model"] in names]


def _controls_table(rows: Sequence[ControlRow]) -> str:
    return _table(
        ["control of PALR_v2", "users", "HR@10", "NDCG@10"],
        [
            [row["control"], f"{row['users']:,}", f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}"]
            for row in rows
        ],
    )


def _paper_table() -> str:
    names = PAPER["ML-1M"]
    rows = [
        [name, *(f"{hr:.4f} / {ndcg:.4f}" for hr, ndcg in (PAPER[data][name] for data in PAPER))]
        for name in names
    ]
    return _table(["model", *PAPER], rows)


def _image(chart: Chart) -> str:
    with matplotlib.rc_context({"svg.hashsalt": "palr"}):
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        for curve in chart.curves:
            axes.plot(curve.x, curve.y, label=curve.label)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        axes.grid(alpha=0.3)
        axes.legend()
        image = io.BytesIO()
        figure.savefig(image, format="svg", metadata={"Date": None})
    data = base64.b64encode(image.getvalue()).decode()
    return f"<p><img alt='{_text(chart.title)}' src='data:image/svg+xml;base64,{data}'></p>"


def _example(example: SlateExample) -> str:
    width = max(map(len, example.slates.values()), default=0)
    rows = []
    for index in range(width):
        cells = [f"<td>{index + 1}</td>"]
        for titles in example.slates.values():
            title = titles[index] if index < len(titles) else ""
            mark = " class='hit'" if title == example.target else ""
            cells.append(f"<td style='text-align:left'{mark}>{_text(title)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th style='text-align:left'>{_text(name)}</th>" for name in example.slates)
    return (
        f"<h3>User {_text(example.user)}</h3><p>Test item: <b>{_text(example.target)}</b></p>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<details><summary>Prompt</summary><pre>{_text(example.prompt)}</pre></details>"
    )


def retriever_cells(row: RetrieverRow) -> dict[str, str]:
    """Column → text of a row of the table of retrievers; the last columns are the paper's."""
    cells = {"model": str(row["model"])}
    for name, value in row.items():
        if isinstance(value, float):
            cells[name] = f"{value:.1f}" if name == "minutes" else f"{value:.4f}"
        elif name == "epochs":
            cells[name] = str(value)
    for dataset, rows in PAPER.items():
        published = rows.get(row["model"])
        text = "{:.4f} / {:.4f}".format(*published) if published else ""
        cells[f"paper, {dataset}"] = text
    return cells
