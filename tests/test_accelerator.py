"""tools/bench/accelerator.py on the CPU, with a small model."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.config import Config, load_config
from palr_jax.config.bundled import config_path
from palr_jax.parallel.chips import CHIPS
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from tools.bench import accelerator

SMALL = {
    "ranker.size.dim": "16", "ranker.size.num_layers": "1", "ranker.size.num_heads": "2",
    "ranker.size.num_kv_heads": "1", "ranker.size.ffn_dim": "32", "ranker.size.vocab_size": "512",
    "instruct.length": "64", "instruct.candidates": "10", "finetune.length": "64",
    "finetune.label_length": "16", "retriever.candidates": "10", "finetune.mode": "lora",
    "ranker.lora": "{rank: 2}",
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(config_path("quickstart"), SMALL)


@pytest.mark.parametrize(("name", "size"), accelerator.wanted([2])[:-1])
def test_every_row_is_measured(config: Config, name: str, size: int) -> None:
    found = accelerator.measure(config, name, size, repeats=2)
    assert found.failure is None
    assert found.milliseconds is not None
    assert found.per_second is not None
    assert found.planned_gib is not None
    assert found.milliseconds > 0
    units = size * (2 if name in ("tune", "tune, XLA attention") else 1)
    assert found.per_second == pytest.approx(1e3 * units / found.milliseconds)
    assert 0 < found.planned_gib < 1
    assert found.bound_ms is None  # a CPU has no published peaks here


def test_quantised_weights_are_measured_as_such(tmp_path: Path) -> None:
    shape = {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    options = {**SMALL, "ranker.weights": str(tmp_path), "ranker.quantize": "int8"}
    config = load_config(config_path("quickstart"), options)
    model = accelerator.drawn(config, Shards(make_mesh(MeshConfig(), jax.devices()[:1])))
    assert model.layers.q.kernel_IO.dtype == jnp.int8
    assert accelerator.rank(config, 2, 1, None).failure is None


def test_the_bound_is_that_of_the_chip(config: Config) -> None:
    step = accelerator.tune(config, "tune", 2, 1, CHIPS["h100"])
    users = accelerator.rank(config, 2, 1, CHIPS["h100"])
    for found in (step, users):
        assert found.bound_ms is not None
        assert found.milliseconds is not None
        assert 0 < found.bound_ms < found.milliseconds


@pytest.mark.parametrize("examples", [1, 2])
def test_rows_hold_one_or_two_examples_with_their_labels_at_the_end(examples: int) -> None:
    batch = accelerator.random_batch(3, 64, 16, examples)
    segment_BT, position_BT = np.asarray(batch.segment_BT), np.asarray(batch.position_BT)
    assert (segment_BT > 0).sum(axis=1).tolist() == [32 * examples] * 3
    for number in range(1, examples + 1):
        np.testing.assert_array_equal(position_BT[0][segment_BT[0] == number], np.arange(32))
    is_label_M = np.asarray(batch.weight_BM)[0] > 0
    assert is_label_M.sum() == 8 * examples
    index_M = np.asarray(batch.target_index_BM)[0][is_label_M]
    assert len(set(index_M.tolist())) == len(index_M)
    assert (position_BT[0][index_M] >= 24).all()
    assert (segment_BT[0][index_M] > 0).all()


def test_a_row_that_fails_is_named_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "jax: RESOURCE_EXHAUSTED: 3 GiB\n  at x.py\n")
    done = subprocess.CompletedProcess(
        [], 0, json.dumps(vars(accelerator.Measured("rank", 4, "users", 2.0, 2000.0))), ""
    )
    answers = iter([failed, done])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: next(answers))
    rows = [accelerator.in_own_process("tune", 4), accelerator.in_own_process("rank", 4)]
    accelerator.print_table(rows)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first == "| tune | 4 | out of memory | | | | | |"
    assert second == "| rank | 4 | 2 | 2,000 users |  |  |  |  |"


def test_a_config_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--config", str(Path("no") / "such.yaml")])
    with pytest.raises(SystemExit, match=r"cannot read the config no/such\.yaml"):
        accelerator.main()
