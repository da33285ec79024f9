"""Reading what was trained, also while training goes on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.errors import UserError
from palr_jax.io.checkpoint import Checkpoints, SavedSteps
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.training.trained import load_trained
from palr_jax.trees import State

SHAPE = LlamaConfig(
    vocab_size=16, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, ffn_dim=8,
    max_length=8,
)  # fmt: skip


def save(folder: Path, params: State, *steps: int) -> None:
    """Saves the parameters plus the number of the step."""
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": jax.tree.map(lambda x: x + step, params)}, {})  # noqa: B023


def first(params: State) -> np.ndarray:
    return np.asarray(jax.tree.leaves(params)[0])


def test_a_step_that_is_deleted_while_it_is_read_gives_way_to_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Llama(SHAPE, nnx.Rngs(0))
    params = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    save(tmp_path / "steps", params, 1)
    load, read = SavedSteps.load, []

    def load_late(self: SavedSteps, step: int, *arguments: Any) -> Any:
        read.append(step)
        if len(read) < 3:  # the training is faster, twice
            save(tmp_path / "steps", params, step + 1)
        return load(self, step, *arguments)

    monkeypatch.setattr(SavedSteps, "load", load_late)
    load_trained(model, tmp_path / "steps")
    assert read == [1, 2, 3]
    np.testing.assert_array_equal(first(nnx.state(model, nnx.Param)), first(params) + 3)


def test_a_damaged_step_is_refused_at_once(tmp_path: Path) -> None:
    model = Llama(SHAPE, nnx.Rngs(0))
    save(tmp_path / "steps", nnx.state(model, nnx.Param), 1)
    for file in (tmp_path / "steps/1/params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="1 cannot be read"):
        load_trained(model, tmp_path / "steps")
