"""CPU time and memory of `palr prepare`, on synthetic interactions in Parquet parts.

    python tools/bench/preparing.py --interactions 1e6 1e7 1e8 --ids numbers

Users and items are drawn by Zipf's law (exponents 0.5 and 1), times uniformly from ten years, so no
part is in the order of time. There are 40 interactions a user, and an item for every 100
interactions, at most a million; titles have 20 to 60 words. Each size is prepared in a process of
its own; its peak of resident memory is what the kernel reports at its end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

_PART_ROWS = 5_000_000
_ITEM_ROWS = 200_000
_TEN_YEARS = 315_360_000
_PREPARE = "import sys; from palr_jax.cli import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--ids", choices=["numbers", "texts"], default="numbers")
    parser.add_argument("--core", type=int, help="the core that prepares; by default any")
    parser.add_argument("--single", action="store_true", help="one file instead of parts")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-preparing"))
    arguments = parser.parse_args()
    print("| interactions | users | items | parts | input, MB | CPU time, s | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for rows in map(int, arguments.interactions):
        folder = arguments.folder / f"{rows}-{arguments.ids}{'-single' * arguments.single}"
        try:
            write(folder, rows, arguments.ids == "texts", rows if arguments.single else _PART_ROWS)
            print(measured(folder, rows, arguments.core), flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def measured(folder: Path, rows: int, core: int | None) -> str:
    """A row of the table: one run of `palr prepare` over the tables in `folder`."""
    parts = sorted((folder / "log").iterdir())
    log, items = parts[0] if len(parts) == 1 else folder / "log", folder / "items.parquet"
    data = {"source": "table", "interactions": str(log), "items": str(items)}
    config = folder / "bench.yaml"
    config.write_text(json.dumps({"name": "bench", "runs": str(folder), "data": data}))
    command = [sys.executable, "-c", _PREPARE, "prepare", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"palr prepare failed: {child.returncode}")
    users, kept, _ = (words.split()[0] for words in said.split(", "))
    megabytes = sum(file.stat().st_size for file in [*parts, items]) / 1e6
    seconds = used.ru_utime + used.ru_stime
    return (
        f"| {rows:,} | {users} | {kept} | {len(parts)} | {megabytes:,.0f} | {seconds:.0f} | "
        f"{used.ru_maxrss / 2**20:.2f} |"
    )


def write(folder: Path, rows: int, texts: bool, part_rows: int) -> None:
    """Writes `log/part-*.parquet` and `items.parquet`, of which only one part is in memory."""
    rng = np.random.default_rng(0)
    users, items = max(rows // 40, 10), min(max(rows // 100, 10), 1_000_000)
    user_law, item_law = law(users, 0.5), law(items, 1.0)
    item_of_rank = rng.permutation(items)
    (folder / "log").mkdir(parents=True)
    for part, start in enumerate(range(0, rows, part_rows)):
        drawn = min(part_rows, rows - start)
        frame = pl.DataFrame(
            {
                "user": np.searchsorted(user_law, rng.random(drawn)),
                "item": item_of_rank[np.searchsorted(item_law, rng.random(drawn))],
                "timestamp": rng.integers(1_400_000_000, 1_400_000_000 + _TEN_YEARS, drawn),
            }
        )
        named(frame, texts).write_parquet(folder / "log" / f"part-{part:05}.parquet")
    written = [
        named(some_items(rng, start, min(start + _ITEM_ROWS, items)), texts)
        for start in range(0, items, _ITEM_ROWS)
    ]
    pl.concat(written).write_parquet(folder / "items.parquet")


def law(count: int, exponent: float) -> np.ndarray:
    """The distribution function of Zipf's law over ranks 0 … count − 1."""
    total_R = np.cumsum(np.arange(1, count + 1) ** -exponent)
    return total_R / total_R[-1]


def some_items(rng: np.random.Generator, start: int, end: int) -> pl.DataFrame:
    """Items `start` … `end − 1`, with titles of 20 to 60 words and three categories of 200."""
    words = np.array([f"word{number:x}" for number in range(20_000)])
    lengths = rng.integers(20, 61, end - start)
    drawn = words[rng.integers(0, len(words), lengths.sum())]
    titles = [" ".join(some) for some in np.split(drawn, np.cumsum(lengths)[:-1])]
    kinds_I3 = rng.integers(0, 200, (end - start, 3))
    kinds = ["|".join(f"Category {kind}" for kind in row) for row in kinds_I3.tolist()]
    return pl.DataFrame(
        {"item": np.arange(start, end), "title": titles, "categories": kinds},
    )


def named(frame: pl.DataFrame, texts: bool) -> pl.DataFrame:
    """The frame, with ids as texts of nine characters if asked for."""
    if not texts:
        return frame
    ids = [name for name in ("user", "item") if name in frame.columns]
    return frame.with_columns(
        pl.format("{}{}", pl.lit(name[0].upper()), pl.col(name).cast(pl.String).str.zfill(8)).alias(
            name
        )
        for name in ids
    )


if __name__ == "__main__":
    main()
