"""A ranker that is tuned over a quantised base: stopped, resumed, loaded, exported."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from palr_jax import llm
from palr_jax.cli import main
from palr_jax.data import prepare as preparing
from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.peft import load_adapter, read_lora
from palr_jax.llm.llama import Llama
from palr_jax.llm.quantize import dequantize
from palr_jax.ranking.ranker import Ranker, load_ranker
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.run import describe
from palr_jax.training import loop
from palr_jax.trees import split_off
from tests.progress import silent
from tests.ranking.imported_world import write_tuned

TUNING = [
    "--config", "tiny.yaml", "--ranker.weights", "weights", "--ranker.quantize", "nf4",
    "--ranker.lora", "{rank: 2, dropout: 0.1, targets: [q, down]}", "--ranker.dtype", "bfloat16",
    "--ranker.variants", "[PALR_v2]",
]  # fmt: skip
TUNED: list[Llama] = []


class DiesError(BaseException):
    """Simulates a kill."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tuned run; the tuned model itself is in TUNED."""
    folder = tmp_path_factory.mktemp("quantized")
    finetune = loop.finetune

    def keeping(model: Llama, *rest: object) -> None:
        finetune(model, *rest)  # type: ignore[arg-type]
        TUNED[:] = [model]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(loop, "finetune", keeping)
        write_tuned(folder, TUNING)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def ranker_of(name: str) -> Ranker:
    run = RunDirectory(Path("runs") / name)
    return load_ranker(run.read_config(), run, "PALR_v2")


def scores(ranker: Ranker) -> np.ndarray:
    """The scores of ten candidates for each of three users."""
    train = preparing.load(Path("runs/tiny/data")).split.train
    candidates_UC = np.array([[*range(start, start + 10)] for start in (0, 10, 20)])
    profiles = ["The user enjoys Drama movies."] * 3
    return ranker.score(train.take(np.arange(3)), profiles, candidates_UC, silent)


def test_a_loaded_ranker_is_the_tuned_one_to_the_bit(here: Path) -> None:
    loaded, (tuned,) = ranker_of("tiny"), TUNED
    pairs = (jax.tree.leaves(nnx.state(model)) for model in (loaded.model, tuned))
    for one, two in zip(*pairs, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    _, adapters, base = split_off(tuned, nnx.LoRAParam)
    assert jnp.dtype(jnp.uint4) in {leaf.dtype for leaf in jax.tree.leaves(base)}
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(adapters)) > 0
    found = scores(loaded)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
    in_process = Ranker(tuned, loaded.writer, loaded.items, loaded.batch_size, loaded.shards)
    np.testing.assert_array_equal(found, scores(in_process))


def test_a_resumed_run_ends_with_the_same_bits(here: Path) -> None:
    write = loop.MetricsLog.write

    def dying(self: loop.MetricsLog, at: int, *rest: Any) -> str:
        if at == 3:
            raise DiesError
        return write(self, at, *rest)

    stages = [[stage, *TUNING, "--name", "again"] for stage in ("prepare", "profile", "finetune")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.MetricsLog, "write", dying)
        assert [main(stage) for stage in stages[:-1]] == [0, 0]
        with pytest.raises(DiesError):
            main(stages[-1])
    assert main(stages[-1]) == 0
    for one, two in zip(
        *(jax.tree.leaves(nnx.state(ranker_of(name).model)) for name in ("tiny", "again")),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_exports_are_the_tuned_ranker(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", "runs/tiny", "--to", "merged"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "the base was quantised to nf4: the weights of its linears are off by " in line
    tuned, tokens = ranker_of("tiny").model, jnp.array([[5, 80, 3, 200, 17, 9]])
    written = load_file("merged/model.safetensors")["model.layers.1.self_attn.k_proj.weight"]
    k = tuned.layers.k
    expected = dequantize(k.kernel_IO[...][1], k.scale_GO[...][1])
    assert str(written.dtype) == "bfloat16"
    np.testing.assert_array_equal(written.T, np.asarray(expected))
    np.testing.assert_allclose(llm.load("merged")[0](tokens), tuned(tokens), atol=0.1)

    assert main(["export", "--run", "runs/tiny", "--adapter", "--to", "adapter"]) == 0
    lora = read_lora(Path("adapter"))
    model, _ = llm.load("weights", "bfloat16", lora, quantization="nf4")
    load_adapter(model, lora, Path("adapter"))
    np.testing.assert_array_equal(model(tokens), tuned(tokens))


def test_another_quantisation_is_another_ranker(here: Path) -> None:
    run = RunDirectory(Path("runs/tiny"))
    config = run.read_config()
    run.stages.require(describe("finetune", config, run))
    other = replace(config, ranker=replace(config.ranker, quantize="int8"))
    with pytest.raises(UserError, match="run `palr finetune` first"):
        run.stages.require(describe("finetune", other, run))


def test_without_qwix_a_tuned_ranker_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "qwix", None)
    before = sorted(Path("runs/tiny/ranker").rglob("*"))
    assert main(["finetune", *TUNING, "--finetune.steps", "5"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("palr")]
    assert "pip install 'palr-jax[quantize]'" in line
    assert sorted(Path("runs/tiny/ranker").rglob("*")) == before
