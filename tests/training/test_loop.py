import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorboardX.proto.event_pb2 import Event

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.pipeline import batches
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.flops import train_flops
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.parallel.chips import CHIPS
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.training import loop, metrics, trained
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.step import Batch
from tests.instruct.test_examples import make_maker

CONFIG = FinetuneConfig(
    steps=9, batch_size=2, length=500, label_length=120, learning_rate=1e-2, save_every=2,
    log_every=1, warmup_steps=2,
)  # fmt: skip
ONE = Shards(make_mesh(MeshConfig()))

Stream = grain.IterDataset[dict[str, np.ndarray]]


def new_model(vocab_size: int) -> Llama:
    shape = LlamaConfig(
        vocab_size=vocab_size, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        ffn_dim=24, max_length=500,
    )  # fmt: skip
    return Llama(shape, nnx.Rngs(params=0))


@pytest.fixture(scope="module")
def data(
    catalog: Catalog, train: Ragged, writer: PromptWriter, instruct_config: InstructConfig
) -> Stream:
    maker = make_maker(catalog, train, writer, instruct_config, 0.5)
    return batches(maker, np.arange(12), Packing(2, 500, 120))


def tuned(
    data: Stream, tokenizer: Tokenizer, folder: Path, config: FinetuneConfig = CONFIG
) -> list[np.ndarray]:
    model = new_model(tokenizer.vocab_size)
    steps, metrics = folder / "steps", folder / "metrics.jsonl"
    loop.finetune(model, [data], config, ONE, steps, metrics, "tiny")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


@dataclass(frozen=True)
class Whole:
    """A training that was never stopped."""

    folder: Path
    params: list[np.ndarray]


@pytest.fixture(scope="module")
def whole(data: Stream, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder, tuned(data, tokenizer, folder))


class DiesError(Exception):
    """Simulates a kill."""


def die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raises when the loop logs `step`, which is after it has started the next step."""
    write = loop.MetricsLog.write

    def dying(self: loop.MetricsLog, at: int, *rest: Any) -> str:
        if at == step:
            raise DiesError
        return write(self, at, *rest)

    monkeypatch.setattr(loop.MetricsLog, "write", dying)


def test_the_loss_falls_and_is_logged(whole: Whole) -> None:
    lines = [json.loads(line) for line in (whole.folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert {"model", "accuracy", "gradient norm", "tokens/s", "model TFLOP/s"} <= set(lines[0])
    (events,) = (whole.folder / "tensorboard" / "tiny").iterdir()
    logged = [
        (value.tag, event.step, value.simple_value)
        for event in read_events(events)
        for value in event.summary.value
    ]
    losses = [(step, value) for tag, step, value in logged if tag == "loss"]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert {tag for tag, _, _ in logged} >= {"accuracy", "tokens/s", "model_TFLOP/s"}


def read_events(path: Path) -> Iterator[Event]:
    """The records of a TensorBoard file: length, its checksum, the event, its checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_rates_follow_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = new_model(512), iter([0.0, 2.0, 2.0])
    peak = CHIPS["v5e"].flops * len(jax.devices())
    monkeypatch.setattr(metrics, "chip_of", lambda kind: CHIPS["v5e"])
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", "tiny", 2, model, after=0, last=9)
    sums = {"tokens": 100, "label tokens": 10, "pairs": 2000.0}
    for step in (1, 2):
        log.write(step, {"loss": jnp.float32(1), **{k: jnp.asarray(v) for k, v in sums.items()}})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    done = train_flops(model.config, None, 200, 20, 4000)
    assert line["tokens/s"] == 100
    assert line["model TFLOP/s"] == pytest.approx(done / 2 / 1e12)
    assert line["MFU"] == pytest.approx(done / 2 / peak)


@pytest.mark.parametrize("step", [1, 8])
def test_a_stopped_run_ends_like_one_that_never_stopped(
    whole: Whole,
    data: Stream,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(DiesError):
            tuned(data, tokenizer, tmp_path / "stopped")
    for one, two in zip(whole.params, tuned(data, tokenizer, tmp_path / "stopped"), strict=True):
        np.testing.assert_array_equal(one, two)
    steps = [json.loads(line)["step"] for line in (tmp_path / "stopped/metrics.jsonl").open()]
    assert steps == list(range(1, 10))


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    whole: Whole,
    data: Stream,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "steps" / "9"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    for one, two in zip(whole.params, tuned(data, tokenizer, tmp_path), strict=True):
        np.testing.assert_array_equal(one, two)
    assert "resuming from an earlier one" in capsys.readouterr().err


def test_a_cut_off_checkpoint_is_refused_at_inference(
    whole: Whole, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    model = new_model(tokenizer.vocab_size)
    trained.load_trained(model, tmp_path / "steps")
    for file in (tmp_path / "steps" / "9").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match=r"steps/9 cannot be read .* delete that folder"):
        trained.load_trained(model, tmp_path / "steps")
    shutil.rmtree(tmp_path / "steps")
    with pytest.raises(UserError, match="no checkpoint: run `palr finetune` first"):
        trained.load_trained(model, tmp_path / "steps")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    whole: Whole, data: Stream, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    wild = FinetuneConfig(**{**vars(CONFIG), "steps": 18, "learning_rate": 1e30})
    with pytest.raises(UserError, match=r"the loss is \S+ at step 1\d: lower finetune"):
        tuned(data, tokenizer, tmp_path, wild)
    assert (tmp_path / "steps" / "9").exists()


def test_the_best_step_is_the_result_and_its_loss_is_noticed(
    data: Stream, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([2.0, 1.0, 1.5, 1.25])
    monkeypatch.setattr(loop, "_validation_loss", lambda *_: next(losses))
    config = replace(CONFIG, validate_every=1, patience=2, keep=1)
    steps, metrics = tmp_path / "steps", tmp_path / "metrics.jsonl"

    def go() -> None:
        model = new_model(tokenizer.vocab_size)
        loop.finetune(
            model, [data], config, ONE, steps, metrics, "tiny", [Batch(**next(iter(data)))]
        )

    go()
    assert trained.trained_step(steps) == 2
    assert sorted(int(step.name) for step in steps.iterdir() if step.name.isdigit()) == [2, 4]
    assert next(losses, None) is None
    shutil.rmtree(steps / "2")
    with pytest.raises(UserError, match=r"lacks step 2, .*: delete that folder"):
        go()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "x"}', '{"step": null}'])
def test_a_damaged_note_of_the_best_step_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.json").write_text(text)
    with pytest.raises(UserError, match=r"steps\.json .*: delete it and run"):
        trained.trained_step(tmp_path / "steps")
