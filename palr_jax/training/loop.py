"""The fine-tuning loop: restore or start, step, log, save."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grain
import jax
from flax import nnx

from palr_jax.checkpoint import Checkpoints, SavedSteps
from palr_jax.errors import UserError
from palr_jax.llm.llama import Llama
from palr_jax.processes import Stop, Terminated
from palr_jax.progress import progress, say
from palr_jax.sharding import Shards
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.feed import Feed, check_rows
from palr_jax.training.metrics import MetricsLog
from palr_jax.training.step import TrainState, initial_state, train_step


def trainable(model: Llama) -> Any:
    """The filter of the parameters that training changes: adapters if there are any, else all."""
    has_adapters = jax.tree.leaves(nnx.state(model, nnx.LoRAParam))
    return nnx.LoRAParam if has_adapters else nnx.Param


def finetune(
    model: Llama,
    streams: Sequence[grain.IterDataset],
    config: FinetuneConfig,
    shards: Shards,
    directory: Path,
    metrics_file: Path,
    name: str,
) -> None:
    """Trains `model` in place; checkpoints go to `directory/<step>/`.

    A run that was stopped goes on from its newest checkpoint, with the same batches in the same
    order, and ends with the same parameters as one that never stopped.

    Args:
        model: the ranker; its adapters are trained if it has any, else all its parameters.
        dataset: endless batches, dicts with the fields of `Batch`.
        config: how long and how fast.
        directory: of the checkpoints.
        metrics_file: gets one JSON line every `config.log_every` steps, named `name`.
        name: stands in the progress bar and in `metrics_file`.

    Raises:
        UserError: the loss is no longer finite (the last good checkpoint stays), no checkpoint
            can be read, or a batch does not divide over the mesh.
        Terminated: SIGTERM came, and the step after it is saved.
    """
    check_rows(config, shards)
    graph, params, frozen = nnx.split(model, trainable(model), ...)
    state = initial_state(params, config, shards)
    batches = Feed(streams, config.batch_size, shards)
    with Checkpoints(directory, config.keep) as checkpoints:
        restored = checkpoints.load_latest(_trees(state))
        if restored:
            _, trees, notes = restored
            state = TrainState(trees["step"], trees["params"], trees["optimizer"])
            batches.set_state(notes)
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
                batch = next(batches)
                state, metrics = train_step(graph, config, state, frozen, batch, shards)
                # Reading the answers of the step before lets the device run ahead of the host.
                if pending:
                    advance(note=log.write(*pending))
                pending, stopping, told_to_stop = (step, metrics), bool(told_to_stop), stop.poll()
                if stopping or step % config.save_every == 0 or step == config.steps:
                    # Logged before it is saved: a resumed run does not come back to this step.
                    advance(note=log.write(*pending))
                    pending = None
                    checkpoints.save(step, _trees(state), batches.get_state(), log.mean_loss())
                if stopping and step < config.steps:
                    checkpoints.finish()
                    raise Terminated(f"{name}: told to stop, saved at step {step}")
    nnx.update(model, state.params)


def load_trained(model: Llama, directory: Path, step: int | None = None) -> None:
    """Puts a checkpoint of `directory` into `model`, by default the newest.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    step = newest_step(directory) if step is None else step
    params = nnx.state(model, trainable(model))
    with SavedSteps(directory) as saved:
        trees, _ = saved.load(step, {"params": params})
    nnx.update(model, trees["params"])


def newest_step(directory: Path) -> int:
    """The step of the newest checkpoint.

    Raises:
        UserError: there is no checkpoint.
    """
    with SavedSteps(directory) as saved:
        steps = saved.steps()
    if not steps:
        raise UserError(f"{directory} holds no checkpoint: run `palr finetune` first")
    return steps[-1]


def _trees(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "optimizer": state.optimizer}
