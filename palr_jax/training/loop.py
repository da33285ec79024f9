"""The fine-tuning loop: restore or start, step, log, save."""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
from flax import nnx

from palr_jax.checkpoint import Checkpoints
from palr_jax.errors import UserError
from palr_jax.files import write_json
from palr_jax.llm.llama import Llama
from palr_jax.processes import Stop, Terminated, is_leader
from palr_jax.progress import progress, say
from palr_jax.sharding import Shards
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.feed import Feed, check_rows
from palr_jax.training.metrics import MetricsLog
from palr_jax.training.step import (
    AnyBatch,
    TrainState,
    initial_state,
    train_step,
    validation_sums,
)
from palr_jax.training.trained import chosen_file, load_trained, trainable


@dataclass(frozen=True)
class Course:
    """Where the validation of a training stands; saved with every checkpoint.

    Attributes:
        best: the lowest validation loss.
        step: the step that it was measured at; 0 before the first.
        stale: how often it has been measured since.
    """

    best: float = math.inf
    step: int = 0
    stale: int = 0

    def after(self, step: int, loss: float) -> "Course":
        """The course after one more measurement."""
        if loss < self.best:
            return Course(loss, step)
        return dataclasses.replace(self, stale=self.stale + 1)


def finetune(
    model: Llama,
    streams: Sequence[grain.IterDataset],
    config: FinetuneConfig,
    shards: Shards,
    directory: Path,
    metrics_file: Path,
    name: str,
    validation: Sequence[AnyBatch] = (),
) -> None:
    """Trains `model` in place; checkpoints go to `directory/<step>/`.

    With validation batches, training stops once their loss has not fallen for `config.patience`
    measurements, and the parameters with the lowest are kept; `directory.json` names their step.

    A run that was stopped goes on from its newest checkpoint, with the same batches in the same
    order, and ends with the same parameters as one that never stopped.

    Args:
        model: the ranker; its adapters are trained if it has any, else all its parameters.
        streams: endless batches, dicts with the fields of `Batch` or `MomentBatch`.
        config: how long and how fast.
        shards: the mesh.
        directory: of the checkpoints.
        metrics_file: gets one JSON line every `config.log_every` steps, named `name`.
        name: stands in the progress bar and in `metrics_file`.
        validation: of users that are held out of tuning.

    Raises:
        UserError: the loss is no longer finite (the last good checkpoint stays), no checkpoint
            can be read, the one with the lowest validation loss is not there, or a batch does not
            divide over the mesh.
        Terminated: SIGTERM came, and the step after it is saved.
    """
    check_rows(config, shards)
    graph, params, frozen = nnx.split(model, trainable(model), ...)
    state = initial_state(params, config, shards)
    batches = Feed(streams, config.batch_size, shards)
    course = Course()
    with Checkpoints(directory, config.keep) as checkpoints:
        restored = checkpoints.load_latest(_trees(state))
        if restored:
            _, trees, notes = restored
            state = TrainState(trees["step"], trees["params"], trees["optimizer"])
            batches.set_state(notes["streams"])
            course = Course(**notes["course"])
            if validation and course.step not in (0, *checkpoints.steps()):
                raise UserError(
                    f"{directory} lacks step {course.step}, which has the lowest validation loss: "
                    "delete that folder and run the stage again"
                )
            say(f"{name}: going on from step {int(state.step)} of {config.steps}")
        first = int(state.step)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        told_to_stop: Any = False
        log = MetricsLog(
            metrics_file, name, config.log_every, model, after=first, last=config.steps
        )
        bar = progress(name, config.steps, "steps", done=first)
        with closing(log), bar as advance, Stop() as stop:
            for step in range(first + 1, config.steps + 1):
                if course.stale >= config.patience:
                    break
                batch = next(batches)
                state, metrics = train_step(graph, config, state, frozen, batch, shards)
                # Reading the answers of the step before lets the device run ahead of the host.
                if pending:
                    advance(note=log.write(*pending))
                pending, stopping, told_to_stop = (step, metrics), bool(told_to_stop), stop.poll()
                is_last, loss = step == config.steps, None
                if validation and (is_last or step % config.validate_every == 0):
                    loss = _validation_loss(graph, state, frozen, validation, shards)
                    course = course.after(step, loss)
                if stopping or is_last or loss is not None or step % config.save_every == 0:
                    # Logged before it is saved: a resumed run does not come back to this step.
                    advance(note=log.write(*pending, loss))
                    pending, mean = None, log.mean_loss()
                    notes = {"streams": batches.get_state(), "course": dataclasses.asdict(course)}
                    checkpoints.save(step, _trees(state), notes, loss if validation else mean)
                if stopping and step < config.steps:
                    checkpoints.finish()
                    raise Terminated(f"{name}: told to stop, saved at step {step}")
    nnx.update(model, state.params)
    if validation:
        if is_leader():
            write_json(
                chosen_file(directory), {"step": course.step, "validation loss": course.best}
            )
        load_trained(model, directory, course.step)


def _validation_loss(
    graph: Any,
    state: TrainState,
    frozen: nnx.State,
    validation: Sequence[AnyBatch],
    shards: Shards,
) -> float:
    sums = [validation_sums(graph, state.params, frozen, batch, shards) for batch in validation]
    return float(sum(total for total, _ in sums) / sum(count for _, count in sums))


def _trees(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "optimizer": state.optimizer}
