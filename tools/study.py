"""Ablations: many rankers over one retriever, a row of a table for each.

    palr run --config configs/study/beauty.yaml
    python tools/study.py runs/study-beauty tools/ablations/beauty.yaml

Each row of the YAML file names the settings in which it differs from the base run. It gets a run
directory of its own (`runs/study-beauty--ROW`), which starts from the base run's data, retriever
and proposals, so that only the ranker is trained. Rows that are done are skipped, and a row that
was stopped resumes: run the same command again. The table goes to standard output, as Markdown.
`--against ROW` adds the differences to another row, over the users of both. `--page FILE` writes a
page with pictures: the lift of every row, and its lift in groups of users.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from palr_jax.data.prepare import load as load_prepared
from palr_jax.evaluation.group_pictures import BY, lift_table, lift_text
from palr_jax.evaluation.html_page import page
from palr_jax.evaluation.html_tables import table
from palr_jax.evaluation.metrics import SLATE, ndcg, slate_rank
from palr_jax.evaluation.pictures import key
from palr_jax.evaluation.significance import paired_bootstrap
from palr_jax.io.files import read_arrays, read_json, read_lines, write_text
from palr_jax.json_types import JsonObject

# What a row takes over from the base run.
_SHARED = ("data", "retriever", "negatives", "title_vectors", "profiles.jsonl", "stages.json")
_HEADER = (
    "row", "users", "decisions", "minutes", "alone", "with prior", "fused",
    "with prior − (retriever + popularity)", "fused − (retriever + popularity)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="run directory of the base run, evaluated")
    parser.add_argument("rows", type=Path, help="YAML file: row name → {section.key: value}")
    parser.add_argument("--only", nargs="*", help="rows to run, by default all")
    parser.add_argument("--print", action="store_true", help="print the table of what is done")
    parser.add_argument("--against", help="a finished row to compare the others with")
    parser.add_argument("--page", type=Path, help="HTML file to write, with pictures")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = yaml.safe_load(arguments.rows.read_text("utf-8"))
    folders = [row_folder(arguments.base, row) for row in rows]
    if clash := [
        row for row, folder in zip(rows, folders, strict=True) if folders.count(folder) > 1
    ]:
        parser.error(f"rows {' and '.join(map(repr, clash))} would share a folder: rename one")
    if arguments.against not in (None, "as configured", *rows):
        parser.error(
            f"--against {arguments.against!r}: the rows are as configured, {', '.join(rows)}"
        )
    for row, settings in rows.items():
        if not arguments.print and (arguments.only is None or row in arguments.only):
            run_row(arguments.base, row, settings)
    if arguments.against not in (None, "as configured"):
        missing = row_folder(arguments.base, arguments.against) / "results.json"
        if not missing.exists():
            parser.error(f"--against {arguments.against!r}: the row is not finished, run it first")
    print_table(arguments.base, list(rows), arguments.against)
    if arguments.page is not None:
        write_text(arguments.page, picture_page(arguments.base, list(rows)))


def row_folder(base: Path, row: str) -> Path:
    """The run directory of a row: what a name of a run may not hold becomes a hyphen."""
    return base.with_name(f"{base.name}--{re.sub(r'[^A-Za-z0-9_.-]+', '-', row).strip('-.')}")


def run_row(base: Path, row: str, settings: dict[str, Any]) -> None:
    """Trains and evaluates the ranker of a row, unless that is done."""
    folder = row_folder(base, row)
    if (folder / "results.json").exists():
        return
    if not folder.exists():
        partial = base.with_name(f".{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in _SHARED:
            if (base / name).is_dir():
                shutil.copytree(base / name, partial / name)
            elif (base / name).exists():
                shutil.copy2(base / name, partial / name)
        shutil.copy2(base / "config.yaml", partial / "config.yaml")
        partial.rename(folder)
    options = [
        text
        for key, value in settings.items()
        for text in (f"--{key}", value if isinstance(value, str) else yaml.safe_dump(
            value, default_flow_style=True).removesuffix("\n...\n").strip())
    ]  # fmt: skip
    command = [
        sys.executable, "-c", "import sys; from palr_jax.cli import main; sys.exit(main())",
        "run", "--config", str(base / "config.yaml"), "--runs", str(base.parent),
        "--name", folder.name, *options,
    ]  # fmt: skip
    print(f"{row}: {' '.join(options)}", file=sys.stderr, flush=True)
    # The command has printed what is wrong.
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def finished(base: Path, rows: list[str]) -> dict[str, Path]:
    """The rows that have results → their run directories."""
    folders = {"as configured": base} | {row: row_folder(base, row) for row in rows}
    return {row: folder for row, folder in folders.items() if (folder / "results.json").exists()}


def print_table(base: Path, rows: list[str], against: str | None) -> None:
    header = list(_HEADER)
    if against is not None:
        header += [f"{name} − {against}" for name in ("alone", "with prior", "fused")]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    folders = finished(base, rows)
    for row, folder in folders.items():
        more = [] if against is None else differences(folder, folders[against])
        print(f"| {' | '.join([row, *cells(folder), *more])} |")


def picture_page(base: Path, rows: list[str]) -> str:
    """An HTML page: the lift of every row, and its lift in groups of users."""
    results = {
        row: read_json(folder / "results.json") for row, folder in finished(base, rows).items()
    }
    retriever = read_json(base / "results.json")["protocol"]["compared with"]
    ranker, fused = models_of(base)[1:]
    lines = [lift_line(row, result, retriever, ranker, fused) for row, result in results.items()]
    caption = f"NDCG@10 minus that of {retriever} + popularity"
    models = ["ranker", "fused"]
    whole = key(models) + lift_table(caption, "row", lines, retriever, models)
    return page(
        f"Ablations of {base.name}",
        [
            ("Lift of each row", whole),
            (
                "Where it comes from",
                "".join(group_table(by, results, retriever, fused) for by in BY),
            ),
        ],
    )


def lift_line(row: str, result: JsonObject, retriever: str, ranker: str, fused: str) -> JsonObject:
    """A row of `lift_table`: the ranker, with its prior if it has one, and the fusion."""
    by_model = {line["model"]: line for line in result["rows"]}
    against = f"{retriever} + popularity"

    def lift(model: str) -> JsonObject:
        mean = by_model[model]["NDCG@10"] - by_model[against]["NDCG@10"]
        return {"mean": mean, "ci95": by_model[model]["ci95"][against]["NDCG@10"]}

    shown = ranker if ranker in by_model else "PALR_v2"
    return {
        "label": row,
        "users": by_model[retriever]["users"],
        retriever: by_model[retriever]["NDCG@10"],
        "lift": {"ranker": lift(shown), "fused": lift(fused)},
    }


def group_table(by: str, results: dict[str, JsonObject], retriever: str, fused: str) -> str:
    """The lift of every row's fusion over the retriever, in each group of users."""
    groups = {row: result["groups"]["lift"][by] for row, result in results.items()}
    labels = list(dict.fromkeys(group["label"] for row in groups.values() for group in row))
    cells_of = {
        row: {group["label"]: lift_text(group["lift"][fused]) for group in found}
        for row, found in groups.items()
    }
    return table(
        f"Lift of the fusion over {retriever}, {BY[by][1].format(retriever=retriever)}",
        ["row", *labels],
        [[row, *(found.get(label, "") for label in labels)] for row, found in cells_of.items()],
    )


def differences(folder: Path, other: Path) -> list[str]:
    """NDCG@10 alone, with prior and fused minus that of another row: 95% paired intervals."""
    test_U = load_prepared(folder / "data").split.test_U
    mine, theirs = read_arrays(folder / "slates.npz"), read_arrays(other / "slates.npz")
    users = np.intersect1d(mine["users"], theirs["users"])

    def quality(slates: dict[str, np.ndarray], model: str) -> np.ndarray:
        slate_UK = slates[model][np.searchsorted(slates["users"], users)]
        return ndcg(slate_rank(slate_UK, test_U[users]), SLATE)

    texts = []
    for model in models_of(folder):
        if model not in mine or model not in theirs:
            texts.append("")
            continue
        low, high = paired_bootstrap(quality(mine, model), quality(theirs, model), seed=0)
        texts.append(f"{low:+.4f} … {high:+.4f} ({len(users):,} users)")
    return texts


def models_of(folder: Path) -> tuple[str, str, str]:
    """The rows of a ranker: alone, with prior, fused."""
    retriever = read_json(folder / "results.json")["protocol"]["compared with"]
    return "PALR_v2", "PALR_v2 with prior", f"PALR_v2 + {retriever}"


def cells(folder: Path) -> list[str]:
    """The cells of a row after its name."""
    results, stages = read_json(folder / "results.json"), read_json(folder / "stages.json")
    by_model = {row["model"]: row for row in results["rows"]}
    retriever, models = results["protocol"]["compared with"], models_of(folder)
    decisions = sum(
        line["label tokens"]
        for line in read_lines(folder / "metrics.jsonl")
        if line["model"] == "PALR_v2"
    )

    def interval(model: str) -> str:
        if model not in by_model:
            return ""
        low, high = by_model[model]["ci95"][f"{retriever} + popularity"]["NDCG@10"]
        return f"{low:+.4f} … {high:+.4f}"

    return [
        f"{by_model[retriever]['users']:,}",
        f"{decisions:,.0f}",
        f"{stages['finetune']['seconds'] / 60:.0f}",
        *(f"{by_model[model]['NDCG@10']:.4f}" if model in by_model else "" for model in models),
        *map(interval, models[1:]),
    ]


if __name__ == "__main__":
    main()
