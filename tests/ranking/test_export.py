"""From imported weights through fine-tuning to weights that other tools read."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from palr_jax import llm
from palr_jax.cli import main
from palr_jax.llm.checkpoints.peft import load_adapter, read_lora
from palr_jax.ranking.ranker import load_ranker
from palr_jax.run_directory import RunDirectory
from tests.llm.variants import VARIANTS, write_checkpoint
from tests.programs import forward
from tests.ranking.imported_world import write_tuned

TUNING = [
    "--config", "tiny.yaml", "--name", "tuned", "--ranker.weights", "weights",
    "--ranker.lora", "{rank: 2, dropout: 0.1, targets: [q, down]}", "--ranker.dtype", "bfloat16",
    "--ranker.variants", "[PALR_v2]",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose ranker was tuned from imported weights."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_tuned(folder, TUNING)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def test_the_base_is_frozen_in_bfloat16_and_the_adapters_have_learned(here: Path) -> None:
    run = RunDirectory(Path("runs/tuned"))
    tuned = load_ranker(run.read_config(), run, "PALR_v2").model
    base, _ = llm.load("weights", dtype="bfloat16")
    for name in ("q", "k", "down"):
        kernel = getattr(tuned.layers, name).kernel_IO[...]
        assert kernel.dtype == jnp.bfloat16
        np.testing.assert_array_equal(kernel, getattr(base.layers, name).kernel_IO[...])
    assert tuned.layers.q.lora_b_RO.dtype == jnp.float32
    assert np.abs(tuned.layers.q.lora_b_RO[...]).max() > 0


def test_the_merged_export_and_the_adapter_are_the_tuned_ranker(here: Path) -> None:
    assert main(["export", "--run", "runs/tuned", "--to", "merged"]) == 0
    assert main(["export", "--run", "runs/tuned", "--adapter", "--to", "adapter"]) == 0
    run = RunDirectory(Path("runs/tuned"))
    tuned = load_ranker(run.read_config(), run, "PALR_v2").model
    tokens = jnp.array([[5, 80, 3, 200, 17, 9]])

    written = json.loads(Path("adapter/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(Path("weights").absolute())
    lora = read_lora(Path("adapter"))
    assert (lora.rank, lora.targets, lora.dropout) == (2, ("q", "down"), 0.1)
    model, _ = llm.load("weights", "bfloat16", lora)
    load_adapter(model, lora, Path("adapter"))
    np.testing.assert_array_equal(forward(model, tokens), forward(tuned, tokens))

    merged, tokenizer = llm.load("merged")
    assert tokenizer is not None
    assert tokenizer.files() == run.read_tokens()[0].files()
    written = load_file("merged/model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(
        written.T.astype(np.float32), tuned.layers.q.merged_kernel(1).astype(jnp.float32)
    )
    np.testing.assert_allclose(forward(merged, tokens), forward(tuned, tokens), atol=0.1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--run", "runs/tuned", "--to", "weights"], "weights already exists"),
        (["--run", "runs/none", "--to", "out"], "runs/none is not a run directory"),
        (["--weights", "weights", "--adapter", "--to", "out"], "name it with --run"),
        (["--weights", "none", "--to", "out"], "none is missing: name a Hugging Face folder"),
        (["--to", "out"], "one of the arguments --run --weights is required"),
        (["--run", "runs/tuned", "--variant", "PALR_v3", "--to", "out"], "invalid choice"),
        (["--run", "runs/tuned", "--variant", "PALR_v1", "--to", "out"], "it has PALR_v2"),
    ],
)
def test_a_mistake_is_one_line(
    here: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *options]) == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert message.count("\n") == 1
    assert not Path("out").exists()


def test_a_type_that_training_would_change_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", *TUNING, "--ranker.lora", "null"]) == 2
    assert "dtype bfloat16 is for weights that stay frozen" in capsys.readouterr().err


def test_weights_without_a_tokenizer_ask_for_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(here / "bare", VARIANTS["llama3"])
    assert main(["finetune", *TUNING, "--ranker.weights", "bare"]) == 2
    assert "bare has no tokenizer: name one in ranker.tokenizer" in capsys.readouterr().err
