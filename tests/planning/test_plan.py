"""`palr plan`: the memory, traffic and time of a config on absent chips."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx

from palr_jax.cli import main
from palr_jax.config import load_config, parse_config
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.weights import abstract
from palr_jax.llm.compute import compute_over
from palr_jax.llm.flops import linear_shapes
from palr_jax.llm.llama import Llama
from palr_jax.parallel.chips import parse_topology
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.planning import plan as planning
from palr_jax.planning.compile import bytes_per_chip
from tests.locations import ROOT
from tests.planning.weight_moves import weight_moves
from tests.xla import flags

MADE = sorted((ROOT / "configs").glob("llama-*/*.yaml"))
LINE = re.compile(r"^# compiled on \d{4}-\d\d-\d\d: peak ([\d.]+) GiB of ([\d.]+)$", re.M)
# Compiling all of these takes a quarter of an hour.
COMPILES = os.environ.get("PALR_COMPILE_CONFIGS") == "1"
HAS_TPU_COMPILER = importlib.util.find_spec("libtpu") is not None

SMALL: JsonObject = {
    "name": "small",
    "instruct": {"length": 256},
    "ranker": {
        "size": {"dim": 256, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4, "ffn_dim": 768,
                 "vocab_size": 1024},
        "lora": {"rank": 8},
    },
    "finetune": {"batch_size": 8, "length": 256, "label_length": 64, "remat": "full"},
    "evaluate": {"batch_size": 8},
    "retriever": {"loss": "sampled_softmax", "negatives": 64, "devices": 4, "fsdp": 2},
    "mesh": {"fsdp": 4},
}  # fmt: skip
CATALOG = 100_000


def palr_plan(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs in a separate process, because it must configure JAX before its first use."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    script = "import sys; from palr_jax.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, "plan", "--config", "small.yaml", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags()},
        capture_output=True,
        text=True,
    )


def check(made: JsonObject) -> None:
    assert made["chips"] == 4
    assert made["fits"] is True
    memory = made["memory_bytes_per_chip"]
    assert made["peak_bytes_per_chip"] == sum(memory.values()) < made["hbm_bytes_per_chip"]
    config = parse_config(SMALL, "small")
    model = nnx.eval_shape(
        lambda: Llama(planning.shape_of(config), nnx.Rngs(0), config.ranker.lora)
    )
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    assert whole / 4 <= memory["parameters"] < whole / 3.9  # norms are not divided
    assert made["step_seconds"] == max(
        made["seconds"][part] for part in ("compute", "hbm", "interconnect")
    )
    assert made["tokens_per_second"] == pytest.approx(8 * 256 / made["step_seconds"])
    assert 0 < made["mfu_bound"] < 1
    assert made["ranking"]["users"] == 8
    gathered = sum(c["bytes_per_chip"] for c in made["collectives"] if c["kind"] == "all-gather")
    assert gathered > 0


def check_retrieval(made: JsonObject) -> None:
    assert made["mesh"] == {"data": 2, "fsdp": 2}
    table = 4 * (CATALOG + 1) * 64 / 2
    memory = made["memory_bytes_per_chip"]
    # Parameters and their average; two moments.
    assert 2 * table < memory["parameters"] < 2.1 * table
    assert 2 * table < memory["optimizer"] < 2.1 * table
    assert made["peak_bytes_per_chip"] == sum(memory.values())
    # Only vectors of the batch and of the negatives are sent, and no table.
    assert 0 < sum(one["bytes_per_chip"] for one in made["collectives"]) < table / 2
    assert made["step_seconds"] > 0


def test_gpus_are_planned_as_an_estimate(tmp_path: Path) -> None:
    done = palr_plan(tmp_path, "--topology", "h100:4", "--items", str(CATALOG), "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["topology"] == "h100:4"
    assert made["estimate"] is True
    check(made)
    check_retrieval(made["retrieval"])


@pytest.mark.parametrize(
    ("weights", "family"),
    [("weights/qwen2.5-7b", "qwen2"), ("Qwen/Qwen3-8B", "qwen3"), ("x/llama3.2-1b", "llama")],
)
def test_absent_weights_are_known_by_the_name_of_their_folder(weights: str, family: str) -> None:
    config = parse_config({**SMALL, "ranker": {"weights": weights}}, "small")
    assert planning.shape_of(config).family == family


@pytest.mark.parametrize("kind, bits", [("int8", 8), ("nf4", 4)])
def test_quantised_weights_take_their_bits_and_a_scale_for_64(kind: str, bits: int) -> None:
    ranker = {"weights": "x/llama-7b", "dtype": "bfloat16", "lora": {"rank": 1}, "quantize": kind}
    config = parse_config({**SMALL, "ranker": ranker, "mesh": {"fsdp": 4}}, "small")
    shape, shards = planning.shape_of(config), Shards(make_mesh(config.mesh, jax.devices()[:4]))
    model = abstract(shape, None, compute_over(shards), config.ranker.quantize, jnp.bfloat16)
    held = bytes_per_chip(planning._sharded_shapes(nnx.state(model), shards, "bfloat16"))
    linears = shape.num_layers * sum(inputs * outputs for inputs, outputs in
                                     linear_shapes(shape).values())  # fmt: skip
    tables = 2 * 2 * shape.vocab_size * shape.dim
    expected = (linears * (bits / 8 + 2 / 64) + tables) / 4
    assert expected <= held < 1.001 * expected  # norms are not divided
    assert f"linears in {kind}, LoRA rank 1" in planning._in_words(shape, config)


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="needs libtpu, the TPU compiler")
def test_tpus_are_planned_with_their_compiler(tmp_path: Path) -> None:
    done = palr_plan(tmp_path, "--topology", "v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["estimate"] is False
    check(made)


def test_a_program_gathers_a_weight_once_a_layer_and_direction() -> None:
    config = parse_config({**SMALL, "mesh": {"data": 2, "fsdp": 4}}, "small")
    shards = Shards(make_mesh(config.mesh))
    shape = planning.shape_of(config)
    compute = compute_over(shards)
    model = nnx.eval_shape(lambda: Llama(shape, nnx.Rngs(params=0), config.ranker.lora, compute))
    program = planning._compile_train(config, model, shards)
    kernels = list(linear_shapes(shape).values())
    assert program.collectives
    moves = weight_moves(program.collectives, kernels)
    # Four linears of [D, D], three of [D, F]; forward, and backward.
    assert moves == {(256, 256): 4 * 3 * 2, (256, 768): 3 * 3 * 2}
    # Rows are not moved: no other gathered array is as large as one of these.
    rest = [
        one for one in program.collectives
        if one.kind == "all-gather" and weight_moves([one], kernels) == dict.fromkeys(moves, 0)
    ]  # fmt: skip
    assert all(np.prod(shape) <= 1024 * 256 for one in rest for shape in one.shapes)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ((), "name the chips to plan for: --topology v5e:4x4, or mesh.topology"),
        (("--topology", "v9:4"), "chip v9 is not one of v4, v5e"),
        (("--topology", "v5e4x4"), "is not of the form v5e:4x4"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    complaint: str,
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config", "small.yaml", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


@pytest.mark.parametrize(
    "options, complaint",
    [
        (
            ("--topology", "h100:8"),
            "mesh: data 1 x fsdp 4 x tensor 1 is 4 devices, but 8 are available",
        ),
        (
            ("--topology", "h100:4", "--ranker.weights", "weights/bloom"),
            "weights/bloom does not exist, and bloom is not a known shape (llama-7b, ",
        ),
        (
            ("--topology", "h100:4", "--items", "900", "--retriever.devices", "2"),
            "retriever.devices is 2, but h100:4 has 4 chips",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    done = palr_plan(tmp_path, *options)
    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.mark.parametrize("path", MADE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_configs_say_what_they_take(path: Path) -> None:
    config = load_config(path, {})
    topology = parse_topology(str(config.mesh.topology))
    assert topology.chips == config.mesh.devices
    assert config.finetune.batch_size % (config.mesh.data * config.mesh.fsdp) == 0
    said = LINE.search(path.read_text())
    assert said, f"{path} has no line: run tools/plans.py --write {path}"
    assert float(said[2]) == pytest.approx(topology.chip.hbm_bytes / 2**30, abs=0.05)
    assert float(said[1]) < float(said[2])


@pytest.mark.skipif(not (COMPILES and HAS_TPU_COMPILER), reason="PALR_COMPILE_CONFIGS=1, libtpu")
def test_what_configs_say_is_what_the_compiler_says() -> None:
    command = [sys.executable, "tools/plans.py", "--check", *map(str, MADE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags()}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
