"""Checkpoints under faults."""

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.errors import UserError
from palr_jax.io import checkpoint
from palr_jax.io.checkpoint import Checkpoints, SavedSteps
from tests.training.kills import finish, kill_at_random, newest, start, wait_for

TREES = {"params": {"w": jnp.arange(6000.0).reshape(60, 100)}, "step": jnp.int32(0)}


def save(folder: Path, steps: dict[int, float | None], keep: int = 2) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step, loss in steps.items():
            checkpoints.save(step, TREES | {"step": jnp.int32(step)}, {"at": step}, loss)


def steps_in(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def load(folder: Path) -> int:
    with Checkpoints(folder) as checkpoints:
        step, trees, notes = checkpoints.load_latest(TREES) or (0, {}, {})
    assert int(trees["step"]) == step == notes["at"]
    np.testing.assert_array_equal(trees["params"]["w"], TREES["params"]["w"])
    return step


def data_file(folder: Path, step: int) -> Path:
    """The file of a step that holds most of its values."""
    return max((folder / str(step) / "params").rglob("*"), key=lambda path: path.stat().st_size)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 1.5})
    assert steps_in(tmp_path) == {2, 4, 5}
    assert load(tmp_path) == 5


def test_without_losses_the_newest_alone_are_kept(tmp_path: Path) -> None:
    save(tmp_path, dict.fromkeys(range(1, 6)), keep=1)
    assert steps_in(tmp_path) == {5}


def test_readers_change_nothing_while_a_step_is_written(tmp_path: Path) -> None:
    """Readers leave the files of an unfinished save alone; only the next writer removes them."""
    save(tmp_path, {1: None, 2: None})
    unfinished = shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    before = sorted(tmp_path.rglob("*"))
    with SavedSteps(tmp_path) as saved:
        assert saved.steps() == [1, 2]
        step, _, notes = saved.load_latest(TREES) or (0, {}, {})
        assert step == notes["at"] == 2
    assert sorted(tmp_path.rglob("*")) == before
    save(tmp_path, {4: None})
    assert not unfinished.exists()


def test_steps_are_listed_again_if_one_is_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, {1: None, 2: None})
    checkpointer, tries = checkpoint.ocp.training.Checkpointer, []

    def listed(*arguments: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:  # what Orbax raises then
            raise FileNotFoundError(tmp_path / "0")
        return checkpointer(*arguments)

    monkeypatch.setattr(checkpoint.ocp.training, "Checkpointer", listed)
    with SavedSteps(tmp_path) as saved:
        assert saved.steps() == [1, 2]
    assert len(tries) == 2


def test_readers_make_no_folder(tmp_path: Path) -> None:
    with SavedSteps(tmp_path / "none") as saved:
        assert saved.steps() == []
        assert saved.load_latest(TREES) is None
        with pytest.raises(UserError, match="cannot be read"):
            saved.load(1, TREES)
    assert not (tmp_path / "none").exists()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_newest_step_is_reported_and_the_one_before_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    save(tmp_path, {1: None, 2: None})
    damage(data_file(tmp_path, 2))
    assert load(tmp_path) == 1
    said = capsys.readouterr().err
    assert f"warning: checkpoint {tmp_path / '2'} cannot be read" in said
    assert "resuming from an earlier one" in said
    damage(data_file(tmp_path, 1))
    with pytest.raises(UserError, match="delete that folder and run the stage again"):
        load(tmp_path)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limits files to 50 kB: the kernel refuses larger writes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_too_much(folder: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(300, 300))  # does not compress
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, {"params": {"w": jnp.asarray(noise)}, "step": jnp.int32(2)}, {"at": 2})


def test_a_save_without_room_is_one_line_and_leaves_the_step_before(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    save(tmp_path, {1: None})
    request.getfixturevalue("small_files")
    with pytest.raises(UserError, match=r"cannot be written to .* File too large") as raised:
        save_too_much(tmp_path)
    assert "\n" not in str(raised.value)
    assert load(tmp_path) == 1


def test_a_run_killed_at_random_ends_with_the_same_bits(tmp_path: Path) -> None:
    steps = 30
    expected = finish(tmp_path / "whole", steps)
    kill_at_random(tmp_path / "killed", 2, seed=0, steps=steps)
    assert newest(tmp_path / "killed") > 0
    for one, two in zip(expected, finish(tmp_path / "killed", steps), strict=True):
        np.testing.assert_array_equal(one, two)


def test_sigterm_saves_and_says_where(tmp_path: Path) -> None:
    process = start(tmp_path, 100_000)
    wait_for(tmp_path / "steps" / "2", process)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    error = process.communicate(timeout=60)[1]
    assert time.monotonic() - told < 30  # preemptible machines give this much
    assert f"stopped by SIGTERM, saved at step {newest(tmp_path)}" in error
    logged = [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").open()]
    assert logged == list(range(1, newest(tmp_path) + 1))


def test_host_and_devices_agree_on_a_checksum() -> None:
    rng = np.random.default_rng(0)
    tree = {
        "floats": jnp.asarray(rng.normal(size=(7, 5, 3)), jnp.float32),
        "halves": jnp.asarray(rng.normal(size=4), jnp.bfloat16),
        "one": jnp.int32(-5),
        "none": jnp.zeros((0, 3)),
        "bytes": jnp.asarray(rng.integers(0, 255, 9), jnp.uint8),
        "host": np.arange(6.0).reshape(2, 3),
    }
    assert checkpoint._digest_on_host(tree) == int(checkpoint._digest(tree))
    other = tree | {"one": jnp.int32(-6)}
    assert checkpoint._digest_on_host(other) != checkpoint._digest_on_host(tree)
