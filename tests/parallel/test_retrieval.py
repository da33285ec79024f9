"""Retrieval with several processes on one machine gives the result of one process."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from palr_jax.cli import main
from palr_jax.errors import UserError
from palr_jax.parallel import processes
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.models import check_processes
from palr_jax.retrieval.sharded import mesh_of
from tests.parallel.test_processes import PALR, copied, start, together, wait
from tests.world import CONFIG, write_world

EPOCHS = 3
TINY = {
    **CONFIG,
    "retriever": {**CONFIG["retriever"], "devices": 4, "fsdp": 2, "loss": "sampled_softmax",
                  "negatives": 12, "max_epochs": EPOCHS, "patience": EPOCHS},
}  # fmt: skip
# Training that takes long enough to be stopped: a step waits.
SLOWLY = f"""
import time
from palr_jax.retrieval import sequential
step = sequential.retriever_step
def slow(*args, **kwargs):
    time.sleep(0.3)
    return step(*args, **kwargs)
sequential.retriever_step = slow
{PALR}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data as `data`, and `alone`, a run whose retriever one process trained."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    arguments = ["--config", "tiny.yaml", "--name", "alone"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prepare", *arguments]) == 0
        shutil.copytree("runs/alone", "runs/data")
    alone = start(folder, "retrieve", "--name", "alone", devices=4, default_fusions=True)
    ended = wait([alone])
    assert [code for code, _ in ended] == [0], ended
    return folder


def retrieve(
    folder: Path, name: str, *arguments: str, script: str = PALR
) -> list[subprocess.Popen[str]]:
    """Two processes with two devices each."""
    return together(folder, "retrieve", name, 2, *arguments, script=script, default_fusions=True)


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    file = folder / "runs" / name / "retriever/sasrec/curve.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{**line, "seconds": 0} for line in lines]


def assert_same(folder: Path, name: str) -> None:
    """To the bit: losses, candidates, scores and ranks."""
    assert len(curve(folder, "alone")) == EPOCHS
    assert curve(folder, name) == curve(folder, "alone")
    for model in ("sasrec", "popularity"):
        mine, theirs = (
            np.load(folder / "runs" / run / "retriever" / model / "candidates.npz")
            for run in (name, "alone")
        )
        assert set(mine.files) == set(theirs.files)
        for array in theirs.files:
            np.testing.assert_array_equal(mine[array], theirs[array])


def test_two_processes_that_are_told_to_stop_end_as_one_that_is_not(world: Path) -> None:
    name = copied(world, "told")
    # Item vectors are divided in another way than in `alone`, which changes nothing.
    group = retrieve(world, name, "--retriever.fsdp", "4", script=SLOWLY)
    reach_an_epoch(group, world, name)
    group[1].send_signal(signal.SIGTERM)
    ended = wait(group, 120)
    assert [code for code, _ in ended] == [143, 143], ended
    assert "sasrec: stopped by SIGTERM, saved" in ended[0][1]
    assert len(curve(world, name)) < EPOCHS
    ended = wait(retrieve(world, name))
    assert [code for code, _ in ended] == [0, 0], ended
    assert "SASRec: test HR@10" in ended[0][1]
    assert "HR@10" not in ended[1][1]
    assert_same(world, name)


def reach_an_epoch(group: list[subprocess.Popen[str]], world: Path, name: str) -> None:
    ends = time.monotonic() + 200
    while not curve(world, name):
        assert time.monotonic() < ends
        assert all(process.poll() is None for process in group), wait(group)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (RetrieverConfig(devices=4), "retriever.devices is 4, but the processes have 8 devices"),
        (RetrieverConfig(), "set it to 8, or train the retriever in one process, by palr retrieve"),
        (RetrieverConfig(model="bpr_mf"), "retriever.model bpr_mf is trained in one process"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    config: RetrieverConfig, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_processes(config)  # one process can
    monkeypatch.setattr(processes, "_group", processes.Group(0, 2))
    with pytest.raises(UserError, match=complaint):
        check_processes(config)


def test_several_processes_train_on_all_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_group", processes.Group(0, 2))
    check_processes(RetrieverConfig(model="popularity"))
    assert mesh_of(RetrieverConfig(devices=8, fsdp=4)).shape == {"data": 2, "fsdp": 4, "tensor": 1}
