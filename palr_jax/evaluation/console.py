"""Tables on the console: as many columns as its width permits, and no number is ever cut."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.table import Table

from palr_jax.evaluation.numbers import short
from palr_jax.evaluation.paper import PAPER
from palr_jax.evaluation.report import METRICS, compared
from palr_jax.evaluation.results import Results, RetrieverRow

_KEY_METRICS = ("HR@10", "NDCG@10")


def print_results(results: Results, console: Console) -> None:
    """Prints results.json: the fullest table that fits the width, then the protocol."""
    baselines = compared(results)
    choices = [
        (METRICS, True, baselines),
        (_KEY_METRICS, True, baselines),
        (_KEY_METRICS, False, baselines),
        (_KEY_METRICS, True, baselines[-1:]),
        (_KEY_METRICS, False, baselines[-1:]),
        (_KEY_METRICS, False, []),
        (_KEY_METRICS[-1:], False, []),
    ]
    _print_fitting(
        console,
        f"PALR on {results['dataset']}",
        [_results_table(results, *choice) for choice in choices],
    )
    for key, text in results["protocol"].items():
        console.print(f"{key}: {text}", highlight=False, markup=False, soft_wrap=True)


def print_retrievers(rows: Sequence[RetrieverRow], source: str, console: Console) -> None:
    """Prints retrievers.json beside the paper's numbers."""
    columns = [name for name in rows[0] if name not in ("model", "users")]
    choices = [(columns, [*PAPER]), (_KEY_METRICS, [*PAPER]), (_KEY_METRICS, [])]
    _print_fitting(
        console,
        f"Retrievers on {source}, beside the paper's HR@10 / NDCG@10",
        [_retrievers_table(rows, *choice) for choice in choices],
    )


def _print_fitting(console: Console, title: str, tables: Sequence[Table]) -> None:
    """Prints the first table that fits the width; else the last, with its names folded."""
    widths = [console.measure(table, options=_unlimited(console)).maximum for table in tables]
    fitting = [table for table, width in zip(tables, widths, strict=True) if width <= console.width]
    table = (fitting or tables[-1:])[0]
    table.title = title
    console.print(table)
    if table is not tables[0]:
        console.print(
            f"(all columns: a console of {widths[0]} characters, or the JSON file)", highlight=False
        )


def _unlimited(console: Console) -> ConsoleOptions:
    return console.options.update(max_width=10_000)


def _results_table(
    results: Results, metrics: Sequence[str], users: bool, baselines: Sequence[str]
) -> Table:
    """The results with a choice of columns, as texts in ASCII."""
    titles = [*(["users"] if users else []), *metrics]
    titles += ["NDCG@10 -\n" + name.replace(" + ", "\n+ ") + ", 95%" for name in baselines]
    rows = []
    for row in results["rows"]:
        cells = [f"{row['users']:,}"] if users else []
        cells += [short(row[name]) for name in metrics]
        for name in baselines:
            bounds = row["ci95"].get(name, {}).get("NDCG@10")
            cells.append(f"{short(bounds[0], '+')} to {short(bounds[1], '+')}" if bounds else "")
        rows.append([row["model"], *cells])
    return _table(["model", *titles], rows)


def _retrievers_table(
    rows: Sequence[RetrieverRow], columns: Sequence[str], papers: Sequence[str]
) -> Table:
    """The retrievers with a choice of columns."""
    lines = []
    for row in rows:
        cells = [_text(name, row[name]) for name in columns]
        for data in papers:
            published = PAPER[data].get(row["model"])
            cells.append(" / ".join(map(short, published)) if published else "")
        lines.append([row["model"], *cells])
    return _table(["model", *columns, *(f"paper,\n{data}" for data in papers)], lines)


def _text(name: str, value: float) -> str:
    if name == "minutes":
        return f"{value:.1f}"
    return short(value) if isinstance(value, float) else f"{value:,}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column may be folded, and whose others keep their width."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left")
    for number, title in enumerate(titles):
        if number:
            table.add_column(title, justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
