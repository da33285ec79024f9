"""Compiles configs for their chips, and updates or checks their line `# compiled on …`.

    python tools/plans.py --write configs/llama-*/*.yaml    # updates the line
    python tools/plans.py --check configs/llama-*/*.yaml    # exits with 1 if a line is wrong
    python tools/plans.py --table configs/llama-7b/v5e-16.yaml   # the rows of docs/pods.md

It needs the TPU compiler (palr-jax[tpu]) but no TPU, and takes a minute or two per config.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

GIB = 2**30
LINE = re.compile(r"^# compiled on (\S+): peak ([\d.]+) GiB of ([\d.]+)$", re.M)
# Compiler versions differ: a line within this relative tolerance is right.
TOLERANCE = 0.02
PALR = "import sys; from palr_jax.cli import main; sys.exit(main())"
# Topology → mesh: weights are sharded within a slice and replicated over slices.
SCALES = {
    "v5e:4x4": {"data": 1, "fsdp": 16},
    "v5e:4x8": {"data": 1, "fsdp": 32},
    "v5e:8x8": {"data": 4, "fsdp": 16},
    "v5e:8x16": {"data": 8, "fsdp": 16},
    "v5e:16x16": {"data": 16, "fsdp": 16},
    "2xv5e:16x16": {"data": 32, "fsdp": 16, "slices": 2},
}
ROWS_A_CHIP, USERS_A_CHIP = 8, 4


def plan(config: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-c", PALR, "plan", "--config", str(config), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def options_of(topology: str) -> list[str]:
    """The command-line options of the weak-scaling step on a topology."""
    mesh = SCALES[topology]
    chips = mesh["data"] * mesh["fsdp"]
    values = {f"mesh.{axis}": size for axis, size in mesh.items()}
    values |= {
        "finetune.batch_size": ROWS_A_CHIP * chips,
        "evaluate.batch_size": USERS_A_CHIP * chips,
    }
    return ["--topology", topology, *(x for k, v in values.items() for x in (f"--{k}", str(v)))]


def row(topology: str, made: dict[str, Any]) -> str:
    seconds = made["seconds"]
    mesh = " x ".join(str(made["mesh"][axis]) for axis in ("data", "fsdp", "tensor"))
    return (
        f"| {topology} | {made['chips']} | {mesh} | {made['batch_size']:,} "
        f"| {made['peak_bytes_per_chip'] / GIB:.2f} | {seconds['compute']:.3f} "
        f"| {seconds['hbm']:.3f} | {seconds['interconnect']:.3f} | {seconds['bound']} "
        f"| {made['tokens_per_second']:,.0f} | {made['mfu_bound']:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    for name in ("write", "check", "table"):
        what.add_argument(f"--{name}", action="store_true")
    parser.add_argument("configs", nargs="+", type=Path)
    arguments = parser.parse_args()
    wrong = 0
    for config in arguments.configs:
        if arguments.table:
            for topology in SCALES:
                print(row(topology, plan(config, *options_of(topology))), flush=True)
            continue
        made, text = plan(config), config.read_text()
        peak, limit = made["peak_bytes_per_chip"] / GIB, made["hbm_bytes_per_chip"] / GIB
        line = f"# compiled on {datetime.date.today()}: peak {peak:.2f} GiB of {limit:.1f}"
        said = LINE.search(text)
        print(f"{config}: {line[2:]}, {made['compile_seconds']:.0f} s", flush=True)
        if arguments.write:
            first, _, rest = LINE.sub("", text).replace("\n\n", "\n").partition("\n")
            config.write_text(f"{first}\n{line}\n{rest}")
        elif not said or abs(float(said[2]) / peak - 1) > TOLERANCE:
            print(f"  but it says: {said[0] if said else 'nothing'}")
            wrong = 1
    sys.exit(wrong)


if __name__ == "__main__":
    main()
