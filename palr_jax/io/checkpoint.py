"""Checkpoints of named pytrees, through Orbax: written in the background, the newest are kept."""

import logging
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from palr_jax.errors import UserError, reason
from palr_jax.io.files import reading
from palr_jax.io.paths import absolute
from palr_jax.io.progress import say
from palr_jax.json_types import Json
from palr_jax.parallel import processes
from palr_jax.trees import PyTree

# Orbax logs every file it writes, and every error several times. Users see an error once, as
# `UserError`.
logging.getLogger("absl").setLevel(logging.CRITICAL)


# Elements that the host sums up; larger trees are left to the devices.
_SMALL = 5_000_000
# How often the steps are listed if another process deletes some of them meanwhile.
_TRIES = 10


class SavedSteps:
    """Reads the checkpoints of one training run: `directory/<step>/`.

    A step holds named pytrees of arrays (for example `params` and `optimizer`) and a small JSON
    value `notes` (for example the state of the data iterator). Reading does not change the
    directory, so it is safe while another process writes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = absolute(directory)
        # Orbax's Checkpointer; mypy does not follow Orbax.
        self._steps: Any = None
        if self._can_open():
            with reading(self.directory, "delete the damaged steps in it"):
                self._steps = self._listed()

    def _listed(self) -> ocp.training.Checkpointer:
        """The open directory, listed again if a step is deleted while it is read."""
        for _ in range(_TRIES - 1):
            with suppress(FileNotFoundError):
                return self._open()
        return self._open()

    def _can_open(self) -> bool:
        return self.directory.is_dir()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._steps is not None:
            self._steps.close()

    def steps(self) -> list[int]:
        """The steps that are complete, ascending."""
        return [] if self._steps is None else sorted(one.step for one in self._steps.checkpoints)

    def load(self, step: int, like: dict[str, PyTree]) -> tuple[dict[str, PyTree], Json]:
        """Loads the trees named in `like`, with the shapes, dtypes and shardings of its arrays.

        Args:
            step: the step.
            like: name → tree of real or abstract arrays.

        Returns:
            The trees and the notes of the step.

        Raises:
            UserError: the step is incomplete, damaged, or differs in shape from `like`.
        """
        try:
            if self._steps is None:
                raise FileNotFoundError("the folder does not exist")
            trees = self._steps.load_checkpointables(step, like)
            metadata = self._steps.metadata(step).custom_metadata
            # The stored format has no checksum, so damaged values can be read without an error.
            wrong = _differing(_digests(dict(trees)), metadata.get("digests", {}))
            if wrong:
                raise ValueError(f"the values of {', '.join(wrong)} are not those that were saved")
            notes = metadata["notes"]
        except Exception as error:  # Orbax, TensorStore and the file system each raise their own
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be read ({reason(error)}): "
                "delete that folder and run the stage again"
            ) from error
        return dict(trees), notes

    def load_latest(self, like: dict[str, PyTree]) -> tuple[int, dict[str, PyTree], Json] | None:
        """Loads the newest readable step; returns None if the directory has no steps.

        Unreadable newer steps are reported and skipped.

        Raises:
            UserError: no step is readable.
        """
        steps = self.steps()[::-1]
        for step in steps:
            found, error = self._try(step, like)
            # A step counts as readable only if every process can read its part.
            errors = [one for one in processes.gather(error) if one is not None]
            if found is not None and not errors:
                return step, *found
            if step == steps[-1]:
                raise UserError(errors[0])
            say(f"warning: {errors[0]}; resuming from an earlier one")
        return None

    def _try(
        self, step: int, like: dict[str, PyTree]
    ) -> tuple[tuple[dict[str, PyTree], Json] | None, str | None]:
        """The result of `load`, or its error message."""
        try:
            return self.load(step, like), None
        except UserError as error:
            return None, str(error)


class Checkpoints(SavedSteps):
    """Reads and writes checkpoints; keeps the newest `keep` steps and the best one.

    Steps appear by rename, so a process that is killed while saving leaves no partial step, only
    temporary files, which the next writer removes. Only one process at a time may write.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self._keep = keep
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory)

    def _can_open(self) -> bool:
        return True  # an empty folder does not exist in a bucket

    def _open(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = policies.AnyPreservationPolicy([policies.LatestN(self._keep), best])
        return ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=True
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        except Exception as failure:  # from a background save
            if error is None:
                raise self._unwritten(failure) from failure
            say(f"warning: {self._unwritten(failure)}")

    def save(
        self, step: int, trees: dict[str, PyTree], notes: Json, loss: float | None = None
    ) -> None:
        """Starts to save `trees` and `notes` as `step`; returns once the values are copied.

        The step with the lowest `loss` is never deleted.

        Waits for the previous save; Orbax would otherwise skip this one. Replaces a damaged step of
        the same number.

        Raises:
            UserError: this or the previous step cannot be written.
        """
        try:
            self._steps.save_checkpointables_async(
                step,
                trees,
                custom_metadata={"notes": notes, "digests": _digests(trees)},
                force=True,
                overwrite=True,
                metrics=None if loss is None else {"loss": loss},
            )
        except Exception as error:  # Orbax, TensorStore and the file system each raise their own
            raise self._unwritten(error) from error

    def finish(self) -> None:
        """Waits until the newest step is on disk."""
        try:
            self._steps.wait()
        except Exception as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: BaseException) -> UserError:
        return UserError(
            f"a checkpoint cannot be written to {self.directory} ({reason(error)}): fix that and "
            "run again; the run resumes from the newest complete one"
        )


def _digests(trees: dict[str, PyTree]) -> dict[str, int]:
    """A checksum per tree."""
    return {
        name: _digest_on_host(tree) if _is_small(tree) else int(_digest(tree))
        for name, tree in trees.items()
    }


def _is_small(tree: PyTree) -> bool:
    """Whether the host sums up a tree faster than a program for it is compiled or loaded."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    is_here = all(leaf.is_fully_addressable for leaf in leaves)
    return is_here and sum(leaf.size for leaf in leaves) < _SMALL


def _digest_on_host(tree: PyTree) -> int:
    """The same number as `_digest`."""
    total = 0
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        array = np.asarray(leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf))
        bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(np.uint32)
        index = np.full(array.shape, number, np.uint32)
        for axis, size in enumerate(array.shape):
            step = np.arange(size, dtype=np.uint32)
            index = index * np.uint32(size) + step.reshape(-1, *[1] * (array.ndim - axis - 1))
        total += int(np.sum(bits * (np.uint32(2) * index + np.uint32(1)), dtype=np.uint32))
    return total % 2**32


def _differing(found: dict[str, int], saved: dict[str, int]) -> list[str]:
    return [name for name in found if found[name] != saved.get(name, found[name])]


@jax.jit
def _digest(tree: PyTree) -> jax.Array:
    """Checksum, uint32: the sum of all elements' bits, each times an odd number unique to it.

    A change of a single element always changes it, and integer sums do not depend on the sharding.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        array = jnp.asarray(leaf)
        bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        index = jnp.full(array.shape, number, jnp.uint32)
        for axis, size in enumerate(array.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, array.shape, axis
            )
        total += jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
    return total
