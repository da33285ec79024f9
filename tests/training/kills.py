"""A run that is killed again and again, compared with one that never is.

    python tests/training/kills.py 20

kills a small run with SIGKILL at 20 random moments, during saves too, starts it again each time,
and compares its parameters bit by bit.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.locations import ROOT
from tests.xla import flags

STEPS = 400
# A run of a small model on synthetic rows, which saves every other step. It touches a file before
# its first step, so that kills hit the run and not the imports.
RUN = """
import sys
from pathlib import Path
import grain, jax, numpy as np
from flax import nnx
from palr_jax.llm.config import LlamaConfig, LoRAConfig
from palr_jax.llm.checkpoints.weights import draw
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.training import loop
from palr_jax.training.config import FinetuneConfig

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
shape = LlamaConfig(vocab_size=64, dim=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8,
                    ffn_dim=32, max_length=32)
config = FinetuneConfig(steps=steps, batch_size=4, streams=2, length=32, label_length=8, keep=2,
                        save_every=2, log_every=1, learning_rate=1e-3)
shards = Shards(make_mesh(MeshConfig(data=2, fsdp=2)))

def row(seed):
    rng = np.random.default_rng(seed)
    one = np.ones(8, np.int32)
    return {"tokens_BT": rng.integers(64, size=32, dtype=np.int32),
            "position_BT": np.arange(32, dtype=np.int32), "segment_BT": np.ones(32, np.int32),
            "target_BM": rng.integers(64, size=8, dtype=np.int32),
            "target_index_BM": np.arange(24, 32, dtype=np.int32), "weight_BM": one}

streams = [grain.MapDataset.range(10**6)[n::2].map(row).to_iter_dataset().batch(2) for n in (0, 1)]
model = draw(shape, LoRAConfig(rank=2, dropout=0.1), 0, shards)
folder.mkdir(parents=True, exist_ok=True)
(folder / "ready").touch()
loop.finetune(model, streams, config, shards, folder / "steps", folder / "m.jsonl", "killed")
np.savez(folder / "end.npz", *jax.tree.leaves(nnx.state(model)))
"""


def start(folder: Path, steps: int = STEPS) -> subprocess.Popen[str]:
    (folder / "ready").unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags(4),
        "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"palr-kills-{os.getuid()}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", RUN, str(folder), str(steps)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.01)


def kill_at_random(folder: Path, number: int, seed: int, steps: int = STEPS) -> int:
    """Kills a run `number` times; returns how many of the kills interrupted a save."""
    rng, cut = random.Random(seed), 0
    for _ in range(number):
        process = start(folder, steps)
        wait_for(folder / "ready", process)
        before = newest(folder)
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.002)  # it has begun to save: every run gets on
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        cut += any("tmp" in path.name for path in (folder / "steps").iterdir())
    return cut


def newest(folder: Path) -> int:
    steps = folder / "steps"
    return (
        max((int(p.name) for p in steps.iterdir() if p.name.isdigit()), default=0)
        if steps.exists()
        else 0
    )


def finish(folder: Path, steps: int = STEPS) -> list[np.ndarray]:
    process = start(folder, steps)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    with np.load(folder / "end.npz") as arrays:
        return [arrays[name] for name in arrays.files]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        whole.mkdir()
        killed.mkdir()
        expected = finish(whole)
        number = int(sys.argv[1])
        cut = kill_at_random(killed, number, seed=time.time_ns())
        at = newest(killed)
        same = all(map(np.array_equal, expected, finish(killed)))
    verdict = "the same bits" if same else "ANOTHER RESULT"
    print(f"{number} kills, {cut} within a save, the last after step {at} of {STEPS}: {verdict}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
