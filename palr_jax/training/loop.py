"""The fine-tuning loop: restore or start, step, log, save."""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
from flax import nnx

from palr_jax.errors import UserError
from palr_jax.io.checkpoint import Checkpoints
from palr_jax.io.files import write_json
from palr_jax.io.progress import progress, say
from palr_jax.llm.llama import Llama
from palr_jax.parallel.processes import Stop, Terminated, is_leader
from palr_jax.parallel.sharding import Shards
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
from palr_jax.trees import PyTree, State, split_off


@dataclass(frozen=True)
class EarlyStopping:
    """The state of validation; saved with every checkpoint.

    Attributes:
        best: the lowest validation loss.
        step: the step of the lowest loss; 0 before the first validation.
        stale: the number of validations since.
    """

    best: float = math.inf
    step: int = 0
    stale: int = 0

    def after(self, step: int, loss: float) -> "EarlyStopping":
        """The state after one more validation."""
        if loss < self.best:
            return EarlyStopping(loss, step)
        return dataclasses.replace(self, stale=self.stale + 1)


def finetune(
    model: Llama,
    streams: Sequence[grain.IterDataset[dict[str, np.ndarray]]],
    config: FinetuneConfig,
    shards: Shards,
    directory: Path,
    metrics_file: Path,
    name: str,
    validation: Sequence[AnyBatch] = (),
    seed: int = 0,
) -> None:
    """Trains `model` in-place; checkpoints are written to `directory/<step>/`.

    With validation batches, training stops once their loss has not fallen for `config.patience`
    validations. The model gets the parameters with the lowest loss; `directory.json` names their
    step.

    An interrupted run resumes from its newest checkpoint with the same batches in the same order,
    and ends with the same parameters as an uninterrupted one.

    Args:
        model: the ranker; its adapters are trained if it has any, else all its parameters.
        streams: endless batches, dicts with the fields of `Batch` or `MomentBatch`.
        config: the settings.
        shards: the mesh.
        directory: the directory of the checkpoints.
        metrics_file: one JSON line is appended every `config.log_every` steps.
        name: the name in the progress bar and in `metrics_file`.
        validation: batches of held-out users.
        seed: seed of the adapters' dropout.

    Raises:
        UserError: the loss is not finite (the last good checkpoint is kept), no checkpoint can be
            read, the one with the lowest validation loss is missing, or a batch does not divide
            over the mesh.
        Terminated: SIGTERM was received; the state is saved.
    """
    check_rows(config, shards)
    graph, params, frozen = split_off(model, trainable(model))
    state = initial_state(params, config, shards)
    batches = Feed(streams, config.batch_size, shards)
    early = EarlyStopping()
    with Checkpoints(directory, config.keep) as checkpoints:
        restored = checkpoints.load_latest(_trees(state))
        if restored:
            _, trees, notes = restored
            state = TrainState(trees["step"], trees["params"], trees["optimizer"])
            batches.set_state(notes["streams"])
            early = EarlyStopping(**notes["course"])
            if validation and early.step not in (0, *checkpoints.steps()):
                raise UserError(
                    f"{directory} lacks step {early.step}, which has the lowest validation loss: "
                    "delete that folder and run the stage again"
                )
            say(f"{name}: resuming at step {int(state.step)} of {config.steps}")
        first = int(state.step)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        told_to_stop: bool | jax.Array = False
        log = MetricsLog(
            metrics_file, name, config.log_every, model, after=first, last=config.steps
        )
        bar = progress(name, config.steps, "steps", done=first)
        with closing(log), bar as advance, Stop() as stop:
            for step in range(first + 1, config.steps + 1):
                if early.stale >= config.patience:
                    break
                batch = next(batches)
                state, metrics = train_step(graph, config, state, frozen, batch, seed)
                # Fetch the metrics of the previous step, so that the device runs ahead of the host.
                if pending:
                    advance(note=log.write(*pending))
                pending, stopping, told_to_stop = (step, metrics), bool(told_to_stop), stop.poll()
                is_last, loss = step == config.steps, None
                if validation and (is_last or step % config.validate_every == 0):
                    loss = _validation_loss(graph, state, frozen, validation)
                    early = early.after(step, loss)
                if stopping or is_last or loss is not None or step % config.save_every == 0:
                    # Log before saving, because a resumed run does not repeat this step.
                    advance(note=log.write(*pending, loss))
                    pending, mean = None, log.mean_loss()
                    notes = {"streams": batches.get_state(), "course": dataclasses.asdict(early)}
                    checkpoints.save(step, _trees(state), notes, loss if validation else mean)
                if stopping and step < config.steps:
                    checkpoints.finish()
                    raise Terminated(f"{name}: stopped by SIGTERM, saved at step {step}")
    nnx.update(model, state.params)
    if validation:
        if is_leader():
            write_json(chosen_file(directory), {"step": early.step, "validation loss": early.best})
        load_trained(model, directory, early.step)


def _validation_loss(
    graph: nnx.GraphDef[Llama],
    state: TrainState,
    frozen: State,
    validation: Sequence[AnyBatch],
) -> float:
    sums = [validation_sums(graph, state.params, frozen, batch) for batch in validation]
    return float(sum(total for total, _ in sums) / sum(count for _, count in sums))


def _trees(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "params": state.params, "optimizer": state.optimizer}
