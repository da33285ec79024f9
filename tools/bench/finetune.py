"""LoRA fine-tuning of one LLaMA with this package and with Hugging Face transformers + peft.

    pip install -e '.[bench]'
    palr import-weights --from smollm2 --to weights/smollm2
    python tools/bench/finetune.py --weights weights/smollm2 --dtypes float32 bfloat16

Both get the same weights, adapters of the same shape and the same examples: those of the task
Recommend_Retrieval with the paper's 20 history items and 50 candidates, four per step. peft gets
them as usual: right-padded to the longest, with prompts masked in the labels. Each side runs in a
separate process, to measure its peak memory; the steps alternate, and medians are compared. The
losses of the first step are printed: adapters start at zero, so they must agree.

Shapes: B examples.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palr_jax.config import load_config

BATCH, RANK, ALPHA, LEARNING_RATE = 4, 16, 32, 3e-4
SIDES = ("palr_jax", "peft")
CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

Tokens = list[tuple[list[int], list[int]]]
# Number of a batch → loss.
Step = Callable[[int], float]


@dataclass(frozen=True)
class Side:
    """A running process of one library with one dtype."""

    library: str
    dtype: str
    process: subprocess.Popen[str]
    seconds: list[float]

    def ask(self, command: str) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(command + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise SystemExit(f"{self.library} {self.dtype} has died")
        return json.loads(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        library, dtype, weights, examples = arguments.worker
        worker = {"palr_jax": ours, "peft": theirs}[library]
        batches = json.loads(Path(examples).read_text())
        serve(worker(dtype, Path(weights), batches, arguments.dropout))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Starts all sides, alternates their steps and prints their time and memory."""
    examples, weights = folder / "examples.json", folder / "weights"
    run = [sys.executable, "-c", "import sys; from palr_jax.cli import main; sys.exit(main())"]
    export = ["export", "--weights", str(arguments.weights), "--to", str(weights)]
    subprocess.run([*run, *export], check=True)
    batches = make_batches(arguments.weights, arguments.steps + 1, folder)
    examples.write_text(json.dumps(batches))
    sizes = [sum(len(prompt + label) - 1 for prompt, label in batch) for batch in batches]
    print(f"{BATCH} examples a step of {statistics.mean(sizes) / BATCH:,.0f} tokens on average")

    sides = []
    for dtype in arguments.dtypes:
        for library in arguments.sides:
            path = weights if library == "peft" else arguments.weights
            command = [sys.executable, __file__, "--weights", str(path), "--dropout"]
            command += [str(arguments.dropout), "--worker", library, dtype, str(path)]
            process = subprocess.Popen(
                [*command, str(examples)], stdin=-1, stdout=-1, text=True, bufsize=1
            )
            side = Side(library, dtype, process, [])
            first = side.ask("0")
            print(
                f"{library} {dtype}: first step with compilation {first['seconds']:.1f} s, ", end=""
            )
            print(f"loss {first['loss']:.4f}", flush=True)
            sides.append(side)
    for step in range(1, arguments.steps + 1):
        for side in sides:
            side.seconds.append(side.ask(str(step))["seconds"])
    tokens = statistics.mean(sizes[1:])
    for side in sides:
        peak, seconds = side.ask("memory")["gib"], statistics.median(side.seconds)
        print(
            f"{side.library} {side.dtype}: {seconds:.2f} s a step "
            f"({', '.join(f'{one:.2f}' for one in side.seconds)}), "
            f"{BATCH / seconds:.3f} examples/s, {tokens / seconds:.0f} tokens/s, "
            f"peak memory {peak:.1f} GiB",
            flush=True,
        )
        side.process.communicate()
    best = {
        library: min(statistics.median(s.seconds) for s in sides if s.library == library)
        for library in arguments.sides
    }
    if len(best) == 2:
        ratio = best["peft"] / best["palr_jax"]
        print(f"the better type of each: {ratio:.2f} times as many examples/s")


def make_batches(weights: Path, count: int, folder: Path) -> list[Tokens]:
    """The first examples of the instruction data, as (prompt, label) in batches."""
    from palr_jax.instruct.examples import ExampleMaker  # noqa: PLC0415
    from palr_jax.instruct.pipeline import visit  # noqa: PLC0415
    from palr_jax.run_directory import RunDirectory  # noqa: PLC0415
    from palr_jax.stages import run as stages  # noqa: PLC0415
    from palr_jax.stages.instruction_data import load_instructions  # noqa: PLC0415

    config = load_config(CONFIG, {"ranker.weights": str(weights), "instruct.length": "1056",
                                  "finetune.length": "1056", "finetune.label_length": "256",
                                  "ranker.lora": "{}", "ranker.variants": "[PALR_v2]",
                                  "ranker.retrieval_share": "1.0"})  # fmt: skip
    run = RunDirectory(folder / "run")
    for stage in ("prepare", "profile"):
        stages.run_stage(stage, config, run)
    made = load_instructions(config, run)
    maker = made.makers["PALR_v2"]
    assert isinstance(maker, ExampleMaker)
    examples = list(visit(maker, made.users, 0, BATCH * count))
    pairs = [(x.prompt_T.tolist(), x.label_M.tolist()) for x in examples]
    return [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]


def ours(
    dtype: Literal["float32", "bfloat16"], weights: Path, batches: list[Tokens], dropout: float
) -> Callable[[int], float]:
    """A step of this package, as in `palr finetune`."""
    import jax  # noqa: PLC0415
    from flax import nnx  # noqa: PLC0415

    from palr_jax.config import RankerConfig  # noqa: PLC0415
    from palr_jax.instruct.packing import (  # noqa: PLC0415
        Example,
        Packing,
        pack,
    )
    from palr_jax.llm.config import LoRAConfig  # noqa: PLC0415
    from palr_jax.parallel.config import MeshConfig  # noqa: PLC0415
    from palr_jax.parallel.sharding import Shards, make_mesh  # noqa: PLC0415
    from palr_jax.ranking.base_model import make_model  # noqa: PLC0415
    from palr_jax.training.config import FinetuneConfig  # noqa: PLC0415
    from palr_jax.training.step import Batch, initial_state, train_step  # noqa: PLC0415
    from palr_jax.trees import split_off  # noqa: PLC0415

    examples = [
        [Example(np.array(prompt), np.array(label), False, False) for prompt, label in batch]
        for batch in batches
    ]
    everything = [example for batch in examples for example in batch]
    width = 32 * -(-max(len(x.prompt_T) + len(x.label_M) - 1 for x in everything) // 32)
    labels = 32 * -(-max(len(x.label_M) for x in everything) // 32)
    packing = Packing(BATCH, width, labels)

    def rows(batch: list[Example]) -> Batch:
        packed = pack(batch, packing, np.random.default_rng(0))
        return Batch(**{name.replace("_R", "_B"): jax.device_put(x) for name, x in packed.items()})

    shards = Shards(make_mesh(MeshConfig()))
    lora = LoRAConfig(rank=RANK, alpha=ALPHA, dropout=dropout)
    config = RankerConfig(weights=str(weights), dtype=dtype, lora=lora)
    model = make_model(config, 0, width, 0, shards)
    tuning = FinetuneConfig(
        steps=100, batch_size=BATCH, remat="dots", length=width, label_length=labels,
        learning_rate=LEARNING_RATE, warmup_steps=0,
    )  # fmt: skip
    graph, params, frozen = split_off(model, nnx.LoRAParam)
    del model
    state = [initial_state(params, tuning, shards)]
    made = [rows(batch) for batch in examples]

    def step(number: int) -> float:
        state[0], metrics = train_step(graph, tuning, state[0], frozen, made[number])
        jax.block_until_ready(state[0])
        return float(metrics["loss"])

    return step


def theirs(
    dtype: str, weights: Path, batches: list[Tokens], dropout: float
) -> Callable[[int], float]:
    """A step of transformers + peft."""
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=getattr(torch, dtype))
    base.config.use_cache = False
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=targets)
    model = peft.get_peft_model(base, lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def padded(batch: Tokens) -> dict[str, Any]:
        longest = max(len(prompt + label) for prompt, label in batch)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for prompt, label in batch:
            room = longest - len(prompt + label)
            columns["input_ids"].append(prompt + label + [0] * room)
            columns["attention_mask"].append([1] * len(prompt + label) + [0] * room)
            columns["labels"].append([-100] * len(prompt) + label + [-100] * room)
        return {name: torch.tensor(rows) for name, rows in columns.items()}

    made = [padded(batch) for batch in batches]

    def step(number: int) -> float:
        loss = model(**made[number]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def serve(step: Step) -> None:
    """Runs a step for every number on standard input, and prints its time and loss."""
    for line in sys.stdin:
        if line.strip() == "memory":
            answer = {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
        else:
            start = time.perf_counter()
            loss = step(int(line))
            answer = {"seconds": time.perf_counter() - start, "loss": loss}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
