"""What a training has left, to be read: without all that training itself needs."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from palr_jax.checkpoint import SavedSteps
from palr_jax.decoding.candidate_head import HeadParam, head_of
from palr_jax.errors import UserError
from palr_jax.files import read_json, reading
from palr_jax.llm.llama import Llama


def trainable(model: Llama) -> Any:
    """The filter of the parameters that training changes: adapters if there are any, else all.

    A candidate head is trained in either case.
    """
    if not jax.tree.leaves(nnx.state(model, nnx.LoRAParam)):
        return nnx.Param
    return nnx.LoRAParam if head_of(model) is None else nnx.Any(nnx.LoRAParam, HeadParam)


def load_trained(model: Llama, directory: Path, step: int | None = None) -> None:
    """Puts a checkpoint of `directory` into `model`, by default that of `trained_step`.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    step = trained_step(directory) if step is None else step
    params = nnx.state(model, trainable(model))
    with SavedSteps(directory) as saved:
        trees, _ = saved.load(step, {"params": params})
    nnx.update(model, trees["params"])


def trained_step(directory: Path) -> int:
    """The step whose parameters are the result: the one with the lowest validation loss of a
    training that validated, else the newest.

    Raises:
        UserError: there is no checkpoint.
    """
    chosen = chosen_file(directory)
    if chosen.exists():
        value = read_json(chosen)
        with reading(chosen, "delete it and run `palr finetune`"):
            return int(value["step"])
    with SavedSteps(directory) as saved:
        steps = saved.steps()
    if not steps:
        raise UserError(f"{directory} holds no checkpoint: run `palr finetune` first")
    return steps[-1]


def chosen_file(directory: Path) -> Path:
    """Which step has the lowest validation loss, of the checkpoints in `directory`."""
    return directory.with_name(f"{directory.name}.json")
