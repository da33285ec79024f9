"""Reads the parameters of a finished training; imports nothing that only training needs."""

from pathlib import Path

import jax
from flax import nnx

from palr_jax.decoding.candidate_head import HeadParam, head_of
from palr_jax.errors import UserError
from palr_jax.io.checkpoint import SavedSteps
from palr_jax.io.files import read_json, reading
from palr_jax.llm.llama import Llama

# How often a reader looks for a step again that a training has deleted for a newer one.
_TRIES = 10


def trainable(model: Llama) -> nnx.filterlib.Filter:
    """The filter of the trained parameters: the adapters if the model has any, else all.

    A candidate head is trained in either case.
    """
    if not jax.tree.leaves(nnx.state(model, nnx.LoRAParam)):
        return nnx.Param
    return nnx.LoRAParam if head_of(model) is None else nnx.Any(nnx.LoRAParam, HeadParam)


def load_trained(model: Llama, directory: Path, step: int | None = None) -> None:
    """Loads a checkpoint of `directory` into `model`, by default that of `trained_step`.

    Training may go on meanwhile.

    Raises:
        UserError: the checkpoint is missing or cannot be read.
    """
    if step is not None:
        _load(model, directory, step)
        return
    for tries in range(_TRIES):
        step = trained_step(directory)
        try:
            _load(model, directory, step)
        except UserError:
            # The training may have deleted this step and saved a newer one.
            if tries + 1 == _TRIES or trained_step(directory) == step:
                raise
        else:
            return


def _load(model: Llama, directory: Path, step: int) -> None:
    params = nnx.state(model, trainable(model))
    with SavedSteps(directory) as saved:
        trees, _ = saved.load(step, {"params": params})
    nnx.update(model, trees["params"])


def trained_step(directory: Path) -> int:
    """The step whose parameters are the result of training.

    It is the step with the lowest validation loss, or the newest if training did not validate.

    Raises:
        UserError: `directory` holds no checkpoint.
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
    """The file that names the step with the lowest validation loss; `directory` holds the steps."""
    return directory.with_name(f"{directory.name}.json")
