"""The training loop of the retrievers, whatever their network.

Letters: U users.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.evaluation.metrics import ndcg
from palr_jax.io.checkpoint import Checkpoints, SavedSteps
from palr_jax.io.files import read_json, reading, write_json, write_text
from palr_jax.io.progress import Advance, progress
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.step import Params, TrainState, copy

Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, jax.Array]]
"""(state, batch, key) → (the state one update later, the loss before it)."""

_CHECKPOINTS = "checkpoints"
_SETTINGS = "settings.json"
_FINISHED = "finished.json"


@dataclass(frozen=True)
class Course:
    """Where training stands; saved with every checkpoint.

    Attributes:
        curve: one dict an epoch: epoch from 1, mean loss, validation NDCG@10, seconds.
        best: the best validation NDCG@10.
        stale: epochs since then.
        finished: whether nothing is left to train.
    """

    curve: tuple[dict[str, float], ...] = ()
    best: float = -1.0
    stale: int = 0
    finished: bool = False


def train(
    params: Params,
    step: Step,
    batches: Callable[[int], list[Any]],
    config: RetrieverConfig,
    split: Split,
    seed: int,
    directory: Path,
    validation_ranks: Callable[[Params], np.ndarray],
) -> Params:
    """Trains from `params`, or from where an earlier call stopped, to the same result.

    Training ends after `max_epochs`, or `patience` epochs without a better validation NDCG@10.

    Args:
        params: the initial parameters.
        step: one update.
        batches: epoch, from 0 → its batches, equally many every epoch.
        config: the settings.
        split: the data.
        seed: of what a step draws, together with epoch and step.
        directory: of settings.json, curve.jsonl and the checkpoints, one an epoch.
        validation_ranks: parameters → rank of each user's validation item.

    Returns:
        The parameters of the epoch with the best validation NDCG@10.

    Raises:
        UserError: the loss is no longer a number, or `directory` has other settings or data.
    """
    _claim(directory, binding(config, split, seed))
    steps = len(batches(0))
    best, state, course = params, TrainState.initial(params), Course()
    with Checkpoints(directory / _CHECKPOINTS) as checkpoints:
        saved = checkpoints.load_latest({"best": best, "state": state})
        if saved is not None:
            best, state, course = saved[1]["best"], saved[1]["state"], Course(**saved[2])
        done = len(course.curve) * steps
        with progress(config.model, config.max_epochs * steps, "steps", done) as advance:
            while not course.finished:
                start, epoch = time.monotonic(), len(course.curve)
                key = jax.random.fold_in(jax.random.key(seed), epoch)
                state, loss = _epoch(step, state, batches(epoch), key, epoch, advance)
                quality = float(ndcg(validation_ranks(state.average), 10).mean())
                if quality > course.best:
                    best = copy(state.average)  # a step takes over the memory of its state
                course = _after(course, config, loss, quality, time.monotonic() - start)
                trees = {"best": best, "state": state}
                checkpoints.save(epoch + 1, trees, dataclasses.asdict(course))
                lines = [json.dumps(line) + "\n" for line in course.curve]
                write_text(directory / "curve.jsonl", "".join(lines))
    # Only now is the last checkpoint whole.
    write_json(directory / _FINISHED, {"best validation NDCG@10": course.best})
    return best


def load_best(like: Params, made_with: dict[str, Any], directory: Path) -> Params:
    """The parameters that `train` returned, for parameters shaped as `like`.

    Raises:
        UserError: training is not finished, had other settings, or cannot be read.
    """
    check_finished(directory, made_with)
    with SavedSteps(directory / _CHECKPOINTS) as checkpoints:
        saved = checkpoints.load_latest({"best": like})
    if saved is None:
        raise UserError(f"{directory} holds no checkpoint: run the stage `retrieve` again")
    return saved[1]["best"]


def check_finished(directory: Path, made_with: dict[str, Any]) -> None:
    """Checks that training in `directory` has come to its end with these settings.

    Raises:
        UserError: it has not.
    """
    if not (directory / _SETTINGS).exists():
        raise UserError(f"{directory} holds no trained retriever: run the stage `retrieve`")
    _check_settings(directory, made_with)
    if not (directory / _FINISHED).exists():
        raise UserError(f"training in {directory} was stopped: run the stage `retrieve` again")


def found_settings(directory: Path) -> dict[str, Any] | None:
    """The settings that the training in `directory` was begun with, None if there is none."""
    file = directory / _SETTINGS
    return _read_settings(file) if file.exists() else None


def settings(config: RetrieverConfig, num_items: int, seed: int) -> dict[str, Any]:
    """All that decides the result of training, but for the data."""
    decisive = dataclasses.asdict(config)
    del decisive["candidates"]  # taken from the scores, after training
    return decisive | {"num_items": num_items, "seed": seed}


def binding(config: RetrieverConfig, split: Split, seed: int) -> dict[str, Any]:
    """All that decides the result of training, with a hash of the data."""
    return settings(config, split.num_items, seed) | {"data": digest(split)}


def cut(arrays: Any, size: int) -> list[Any]:
    """Cuts a pytree of arrays along their first axis; a rest smaller than `size` is left out."""
    count = len(jax.tree.leaves(arrays)[0]) // size

    def part(index: int) -> Any:
        return jax.tree.map(lambda array: array[index * size : (index + 1) * size], arrays)

    return [part(index) for index in range(count)]


def _epoch(
    step: Step,
    state: TrainState,
    batches: list[Any],
    key: jax.Array,
    epoch: int,
    advance: Advance,
) -> tuple[TrainState, float]:
    """Trains on all batches; returns the mean loss as well."""
    losses: list[float] = []
    running: jax.Array | None = None
    for index, batch in enumerate(batches):
        state, loss = step(state, batch, jax.random.fold_in(key, index))
        # The loss of a step is fetched while the next one runs, so the device never waits.
        if running is not None:
            losses.append(_finite("loss", running, epoch, index))
        running = loss
        advance(note=f"epoch {epoch + 1}" + (f", loss {losses[-1]:.3f}" if losses else ""))
    if running is not None:
        losses.append(_finite("loss", running, epoch, len(batches)))
    # The last update has no loss after it that would tell.
    _finite("size of parameters", optax.tree.norm(state.params), epoch, len(batches))
    return state, float(np.mean(losses))


def _finite(name: str, number: jax.Array, epoch: int, step: int) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise UserError(
            f"the retriever's {name} is {value} in epoch {epoch + 1}, step {step}: lower "
            "retriever.learning_rate and delete its folder (the epochs before are kept there)"
        )
    return value


def _after(
    course: Course, config: RetrieverConfig, loss: float, quality: float, seconds: float
) -> Course:
    """The course after one more epoch."""
    line = {
        "epoch": len(course.curve) + 1,
        "loss": loss,
        "validation NDCG@10": quality,
        "seconds": seconds,
    }
    curve = (*course.curve, line)
    stale = 0 if quality > course.best else course.stale + 1
    finished = len(curve) >= config.max_epochs or stale >= config.patience
    return Course(curve, max(quality, course.best), stale, finished)


def digest(split: Split) -> str:
    """A hash of the data that training sees."""
    parts = (split.train.values_N, split.train.offsets_R1, split.validation_U)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def _claim(directory: Path, made_with: dict[str, Any]) -> None:
    """Binds a fresh directory to these settings; checks one that is bound."""
    if (directory / _SETTINGS).exists():
        _check_settings(directory, made_with)
    else:
        write_json(directory / _SETTINGS, made_with)


def _check_settings(directory: Path, made_with: dict[str, Any]) -> None:
    found = _read_settings(directory / _SETTINGS)
    for name, value in made_with.items():
        if found.get(name) != value:
            raise UserError(
                f"the retriever in {directory} was trained with {name} {found.get(name)}, not "
                f"{value}: delete that folder and run the stage `retrieve` again"
            )


def _read_settings(file: Path) -> dict[str, Any]:
    value = read_json(file)
    with reading(file):
        return dict(value)
