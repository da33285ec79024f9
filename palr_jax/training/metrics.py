"""The logs of a training run: JSON lines, and events for TensorBoard."""

import json
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from palr_jax.errors import UserError
from palr_jax.io.files import append_text, write_text
from palr_jax.io.paths import in_bucket
from palr_jax.llm.flops import train_flops
from palr_jax.llm.llama import Llama
from palr_jax.parallel.chips import chip_of
from palr_jax.parallel.processes import is_leader

# Metrics of a batch that are summed between two lines and not written themselves.
_SUMMED = ("tokens", "label tokens", "pairs")


class MetricsLog:
    """Writes a line every `every` steps, and one for the last step.

    A line holds loss, accuracy of label tokens, gradient norm and rates.

    The rates cover the time since the last line: `tokens/s` without padding; `model TFLOP/s`, as
    counted by `palr_jax.llm.flops.train_flops` (4 operations per token and frozen parameter, 6 per
    token and trained one, plus attention over the visible tokens); and `MFU`, its share of the peak
    of all chips, if `palr_jax.parallel.chips` lists them.
    """

    def __init__(
        self, path: Path, name: str, every: int, model: Llama, after: int, last: int
    ) -> None:
        """Opens the files; removes lines of steps after `after`, which will be repeated.

        Args:
            path: file of the JSON lines; events go to tensorboard/`name` in the same directory.
            name: the name in every line.
            every: steps between two lines.
            model: the model whose operations are counted.
            after: number of steps done.
            last: the last step.
        """
        _drop_lines(path, name, after)
        self._path, self._name, self._every, self._last = path, name, every, last
        self._config, self._lora = model.config, model.lora
        devices = jax.devices()
        chip = chip_of(devices[0].device_kind)
        self._peak = chip.flops * len(devices) if chip else None
        # One process writes; all processes sum.
        folder = path.parent / "tensorboard" / name
        self._events = _Events(folder, after + 1 if after else None) if is_leader() else None
        self._losses: list[float] = []
        self._start()

    def mean_loss(self) -> float:
        """The mean loss since the last call."""
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses)

    def write(
        self, step: int, metrics: dict[str, jax.Array], validation: float | None = None
    ) -> str:
        """Logs the metrics of a step and returns a note for the progress bar.

        A validation loss is written immediately, whatever the interval.

        Raises:
            UserError: the loss is not finite.
        """
        values = {key: float(value) for key, value in metrics.items()}
        loss = _finite(step, metrics)
        self._losses.append(loss)
        for key in _SUMMED:
            self._sums[key] += values.pop(key)
        note = f"loss {loss:.3f}"
        if validation is not None:
            values["validation loss"] = validation
            note += f", validation {validation:.4f}"
        if step % self._every == 0 or step == self._last or validation is not None:
            self._write_line(step, values | self._rates())
            self._start()
        return note

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._events:
            self._events.close()

    def _start(self) -> None:
        self._since = time.monotonic()
        self._sums = dict.fromkeys(_SUMMED, 0.0)

    def _rates(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self._since, 1e-9)
        tokens, labels, pairs = (self._sums[key] for key in _SUMMED)
        rate = train_flops(self._config, self._lora, tokens, labels, pairs) / seconds
        rates = {
            "label tokens": labels,  # since the line before; of the objective `candidates`, moments
            "tokens/s": tokens / seconds,
            "model TFLOP/s": rate / 1e12,
        }
        return rates | ({"MFU": rate / self._peak} if self._peak else {})

    def _write_line(self, step: int, values: dict[str, float]) -> None:
        if not self._events:
            return
        line = {"model": self._name, "step": step, **values}
        append_text(self._path, json.dumps(line) + "\n")
        self._events.write(step, values)


class _Events:
    """Scalars for TensorBoard. Objects in a bucket cannot be appended to, so they are copies."""

    def __init__(self, folder: Path, purge: int | None) -> None:
        # Only the leader of a tuning needs it, and it imports the clients of buckets.
        from tensorboardX import SummaryWriter  # noqa: PLC0415

        self._folder = folder
        self._scratch = TemporaryDirectory() if in_bucket(folder) else None
        local = folder if self._scratch is None else Path(self._scratch.name)
        self._writer = SummaryWriter(str(local), purge_step=purge)

    def write(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key.replace(" ", "_"), value, step)
        self._writer.flush()
        self._copy()

    def close(self) -> None:
        self._writer.close()
        self._copy()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _copy(self) -> None:
        if self._scratch is not None:
            for file in Path(self._scratch.name).iterdir():
                (self._folder / file.name).write_bytes(file.read_bytes())


def _finite(step: int, metrics: dict[str, jax.Array]) -> float:
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}: lower finetune.learning_rate and run again "
            "(the last good checkpoint is kept)"
        )
    return loss


def _drop_lines(path: Path, name: str, after: int) -> None:
    """Removes lines of steps that will be repeated."""
    if not is_leader() or not path.exists():
        return
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if _is_to_keep(line, name, after)]
    if kept != lines:
        write_text(path, "".join(kept))


def _is_to_keep(line: str, name: str, after: int) -> bool:
    """Whether a line is complete, and its step will not be repeated."""
    try:
        entry = json.loads(line)
        is_done = entry["model"] != name or entry["step"] <= after
    except (ValueError, TypeError, KeyError):  # truncated by a kill, or damaged
        return False
    return line.endswith("\n") and bool(is_done)
