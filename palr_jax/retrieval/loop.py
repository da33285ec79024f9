"""The training loop of all trained retrievers."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

import jax
import numpy as np
import optax

from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.evaluation.metrics import ndcg
from palr_jax.io.checkpoint import Checkpoints, SavedSteps
from palr_jax.io.files import write_json, write_text
from palr_jax.io.progress import Advance, progress
from palr_jax.io.provenance import Inputs, changed, claim, recorded
from palr_jax.json_types import JsonObject
from palr_jax.parallel import processes
from palr_jax.parallel.processes import Stop, Terminated
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.step import Params, RetrieverState, copy
from palr_jax.trees import PyTree

Step: TypeAlias = Callable[[RetrieverState, PyTree, jax.Array], tuple[RetrieverState, jax.Array]]
"""(state, batch, key) → (the state one update later, the loss before it)."""

_Tree = TypeVar("_Tree")

_CHECKPOINTS = "checkpoints"
_SETTINGS = "settings.json"
_FINISHED = "finished.json"


@dataclass(frozen=True)
class EpochLog:
    """The state of training, saved with every checkpoint.

    Attributes:
        curve: one dict per epoch: epoch from 1, mean loss, validation NDCG@10, seconds.
        best: the best validation NDCG@10.
        stale: epochs since the best one.
        finished: whether training is complete.
        losses: those of the steps of an epoch that was stopped.
    """

    curve: tuple[dict[str, float], ...] = ()
    best: float = -1.0
    stale: int = 0
    finished: bool = False
    losses: tuple[float, ...] = ()


def train(
    params: Params,
    step: Step,
    batches: Callable[[int], Sequence[PyTree]],
    config: RetrieverConfig,
    split: Split,
    seed: int,
    directory: Path,
    validation_ranks: Callable[[Params], np.ndarray],
    feature_IR: np.ndarray | None = None,
    begin: Callable[[Params], RetrieverState] = RetrieverState.initial,
) -> Params:
    """Trains from `params`, or resumes an interrupted call; the result is the same.

    Training ends after `max_epochs`, or `patience` epochs without a better validation NDCG@10. With
    several processes, all must call this; the leader writes the files.

    Args:
        params: the initial parameters.
        step: one update.
        batches: epoch, from 0 → its batches, the same number every epoch.
        config: the settings.
        split: the data.
        seed: seeds each step's random draws, together with the epoch and the step.
        directory: where settings.json, curve.jsonl and one checkpoint per epoch are written.
        validation_ranks: parameters → rank of each user's validation item [U].
        feature_IR: features of the items, which are a part of the data.
        begin: parameters → the state before the first step, which does not alias them.

    Returns:
        The parameters of the epoch with the best validation NDCG@10.

    Raises:
        UserError: the loss or the parameters are not finite, or `directory` was made with other
            settings or data.
        Terminated: SIGTERM was received; the state is saved.
    """
    inputs = binding(config, split, seed, feature_IR)
    found = processes.led(lambda: dict(claim(directory / _SETTINGS, inputs)))
    _check_settings(directory, inputs, found)
    steps = len(batches(0))
    best, state, log = params, begin(params), EpochLog()
    with Checkpoints(directory / _CHECKPOINTS) as checkpoints:
        saved = checkpoints.load_latest({"best": best, "state": state})
        if saved is not None:
            best, state, log = saved[1]["best"], saved[1]["state"], EpochLog(**saved[2])
        done = len(log.curve) * steps + len(log.losses)
        bar = progress(config.model, config.max_epochs * steps, "steps", done)
        with bar as advance, Stop() as stop:
            while not log.finished:
                start, epoch = time.monotonic(), len(log.curve)
                key = jax.random.fold_in(jax.random.key(seed), epoch)
                state, losses = _epoch(
                    step, state, batches(epoch), key, epoch, log.losses, advance, stop
                )
                if len(losses) < steps:
                    log = dataclasses.replace(log, losses=losses)
                    checkpoints.finish()  # it replaces the one that the last epoch ended with
                    checkpoints.save(epoch, {"best": best, "state": state}, dataclasses.asdict(log))
                    _stop(checkpoints, config, f"saved at step {len(losses)} of epoch {epoch + 1}")
                quality = float(ndcg(validation_ranks(state.average), 10).mean())
                if quality > log.best:
                    best = copy(state.average)  # the next step donates the state's memory
                mean = float(np.mean(losses))
                log = _after(log, config, mean, quality, time.monotonic() - start)
                trees = {"best": best, "state": state}
                checkpoints.save(epoch + 1, trees, dataclasses.asdict(log))
                lines = [json.dumps(line) + "\n" for line in log.curve]
                write_text(directory / "curve.jsonl", "".join(lines))
                if bool(stop.poll()):
                    _stop(checkpoints, config, f"saved after epoch {epoch + 1}")
    # Closing the checkpoints has completed the last save.
    write_json(directory / _FINISHED, {"best validation NDCG@10": log.best})
    return best


def load_best(like: Params, made_with: Inputs, directory: Path) -> Params:
    """The parameters that `train` returned, with the tree, shapes and dtypes of `like`.

    Raises:
        UserError: training is not finished, had other settings, or cannot be read.
    """
    check_finished(directory, made_with)
    with SavedSteps(directory / _CHECKPOINTS) as checkpoints:
        saved = checkpoints.load_latest({"best": like})
    if saved is None:
        raise UserError(f"{directory} holds no checkpoint: run the stage `retrieve` again")
    return saved[1]["best"]


def check_finished(directory: Path, made_with: Inputs) -> None:
    """Checks that training in `directory` finished with these settings.

    Raises:
        UserError: it did not.
    """
    found = recorded(directory / _SETTINGS)
    if found is None:
        raise UserError(f"{directory} holds no trained retriever: run the stage `retrieve`")
    _check_settings(directory, made_with, found)
    if not (directory / _FINISHED).exists():
        raise UserError(f"training in {directory} was stopped: run the stage `retrieve` again")


def has_other_inputs(directory: Path, made_with: Inputs) -> bool:
    """Whether `directory` holds a training, finished or not, with other settings or data."""
    found = recorded(directory / _SETTINGS)
    return found is not None and bool(changed(made_with, found))


def settings(config: RetrieverConfig, num_items: int, seed: int) -> JsonObject:
    """Everything but the data that determines the result of training."""
    decisive = dataclasses.asdict(config)
    del decisive["candidates"]  # taken from the scores, after training
    del decisive["fsdp"]  # changes no result
    if config.item_features == "none":
        del decisive["item_features"]  # retrievers that were trained without this key stay valid
    return decisive | {"num_items": num_items, "seed": seed}


def binding(
    config: RetrieverConfig, split: Split, seed: int, feature_IR: np.ndarray | None = None
) -> JsonObject:
    """Everything that determines the result of training, the data as a hash."""
    return settings(config, split.num_items, seed) | {"data": digest(split, feature_IR)}


def cut(arrays: _Tree, size: int) -> list[_Tree]:
    """Cuts a pytree of arrays along the leading axis; a remainder below `size` is dropped."""
    count = len(jax.tree.leaves(arrays)[0]) // size

    def part(index: int) -> _Tree:
        return jax.tree.map(lambda array: array[index * size : (index + 1) * size], arrays)

    return [part(index) for index in range(count)]


def _stop(checkpoints: Checkpoints, config: RetrieverConfig, saved: str) -> NoReturn:
    checkpoints.finish()
    raise Terminated(f"{config.model}: stopped by SIGTERM, {saved}")


def _epoch(
    step: Step,
    state: RetrieverState,
    batches: Sequence[PyTree],
    key: jax.Array,
    epoch: int,
    done: Sequence[float],
    advance: Advance,
    stop: Stop,
) -> tuple[RetrieverState, tuple[float, ...]]:
    """Trains on the batches after those that are `done`; returns the state and all losses.

    There are fewer losses than batches if all processes receive SIGTERM.
    """
    losses = list(done)
    running: jax.Array | None = None
    told_to_stop: bool | jax.Array = False
    for index in range(len(done), len(batches)):
        state, loss = step(state, batches[index], jax.random.fold_in(key, index))
        # Fetch a step's loss while the next one runs, so that the device never waits.
        if running is not None:
            losses.append(_finite("loss", running, epoch, index))
        running = loss
        advance(note=f"epoch {epoch + 1}" + (f", loss {losses[-1]:.3f}" if losses else ""))
        stopping, told_to_stop = bool(told_to_stop), stop.poll()
        if stopping:
            break
    if running is not None:
        losses.append(_finite("loss", running, epoch, len(losses) + 1))
    # No later loss reveals divergence in the last update, so check the parameter norm.
    _finite("parameter norm", _norm(state.params), epoch, len(losses))
    return state, tuple(losses)


_norm = jax.jit(optax.tree.norm)


def _finite(name: str, number: jax.Array, epoch: int, step: int) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise UserError(
            f"the retriever's {name} is {value} in epoch {epoch + 1}, step {step}: lower "
            "retriever.learning_rate and delete its folder, which holds the earlier epochs"
        )
    return value


def _after(
    log: EpochLog, config: RetrieverConfig, loss: float, quality: float, seconds: float
) -> EpochLog:
    """The log with one more epoch."""
    line = {
        "epoch": len(log.curve) + 1,
        "loss": loss,
        "validation NDCG@10": quality,
        "seconds": seconds,
    }
    curve = (*log.curve, line)
    stale = 0 if quality > log.best else log.stale + 1
    finished = len(curve) >= config.max_epochs or stale >= config.patience
    return EpochLog(curve, max(quality, log.best), stale, finished)


def digest(split: Split, feature_IR: np.ndarray | None = None) -> str:
    """A hash of the training and validation data, and of the features of the items, if any."""
    parts = [split.train.values_N, split.train.offsets_R1, split.validation_U]
    if feature_IR is not None:
        parts.append(feature_IR)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def _check_settings(directory: Path, wanted: Inputs, found: Inputs) -> None:
    for name in changed(wanted, found):
        raise UserError(
            f"the retriever in {directory} was trained with {name} {found.get(name)}, not "
            f"{wanted[name]}: delete that folder and run the stage `retrieve` again"
        )
