"""Steps of named pytrees on disk, through Orbax: written in the background, newest kept."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from palr_jax import processes
from palr_jax.errors import UserError, reason
from palr_jax.files import reading
from palr_jax.paths import absolute
from palr_jax.progress import say

# Orbax announces every file it writes, and tells every error several times at length; errors reach
# a user once, as `UserError`.
logging.getLogger("absl").setLevel(logging.CRITICAL)


# Elements that the host sums up; larger trees are left to the devices.
_SMALL = 5_000_000


class SavedSteps:
    """The checkpoints of one training run, to read: `directory/<step>/`.

    A step holds named pytrees of arrays (for example `params` and `optimizer`) and a small JSON
    value `notes` (for example the state of the data iterator). Reading changes nothing in the
    directory, so that it disturbs no process which writes there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = absolute(directory)
        self._steps: Any = None
        if self._is_there():
            with reading(self.directory, "delete the steps in it that are damaged"):
                self._steps = self._open()

    def _is_there(self) -> bool:
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

    def load(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Loads the trees named in `like` (abstract or real arrays give shape, type, sharding).

        Returns:
            The trees and the notes of the step.

        Raises:
            UserError: the step is cut off, damaged or of another shape than `like`.
        """
        try:
            if self._steps is None:
                raise FileNotFoundError("there is no such folder")
            trees = self._steps.load_checkpointables(step, like)
            beside = self._steps.metadata(step).custom_metadata
            # Damaged values may well be read: what is stored has no checksum of its own.
            wrong = _differing(_digests(dict(trees)), beside.get("digests", {}))
            if wrong:
                raise ValueError(f"the values of {', '.join(wrong)} are not those that were saved")
            notes = beside["notes"]
        except Exception as error:  # Orbax, TensorStore and the file system each raise their own
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be read ({reason(error)}): "
                "delete that folder and run the stage again"
            ) from error
        return dict(trees), notes

    def load_latest(self, like: dict[str, Any]) -> tuple[int, dict[str, Any], Any] | None:
        """Loads the newest step that can be read, or returns None if there is no step at all.

        A newer step that cannot be read is reported and passed over.

        Raises:
            UserError: there are steps, but none can be read.
        """
        steps = self.steps()[::-1]
        for step in steps:
            found, error = self._try(step, like)
            # One process may read its part where another cannot.
            errors = [one for one in processes.gather(error) if one is not None]
            if found is not None and not errors:
                return step, *found
            if step == steps[-1]:
                raise UserError(errors[0])
            say(f"warning: {errors[0]}; going on from an earlier one")
        return None

    def _try(self, step: int, like: dict[str, Any]) -> tuple[Any, str | None]:
        """What `load` gives, or what it complains about."""
        try:
            return self.load(step, like), None
        except UserError as error:
            return None, str(error)


class Checkpoints(SavedSteps):
    """The same to write as well: the newest `keep` steps are kept, and the best.

    Steps appear by rename, so a process that is killed while saving leaves no half-written step
    behind; what it leaves, the next writer removes. One process at a time may write.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self._keep = keep
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory)

    def _is_there(self) -> bool:
        return True  # though a bucket shows no folder before there is something in it

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
        except Exception as failure:  # of a save in the background
            if error is None:
                raise self._unwritten(failure) from failure
            say(f"warning: {self._unwritten(failure)}")

    def save(self, step: int, trees: dict[str, Any], notes: Any, loss: float | None = None) -> None:
        """Starts to save `trees` and `notes` as `step`; returns once their values are copied.

        The step with the lowest `loss` of those that have one is kept however old it gets.

        Waits for an earlier save, which Orbax would otherwise prefer to this one, and replaces a
        damaged step of the same number.

        Raises:
            UserError: it cannot be written, or the one before it could not; as the others.
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
            f"a checkpoint cannot be written to {self.directory} ({reason(error)}): see to it and "
            "run again; the run goes on from the newest one that is whole"
        )


def _digests(trees: dict[str, Any]) -> dict[str, int]:
    """A checksum of every tree."""
    return {
        name: _digest_on_host(tree) if _is_small(tree) else int(_digest(tree))
        for name, tree in trees.items()
    }


def _is_small(tree: Any) -> bool:
    """Whether the host sums up a tree faster than a program for it is compiled or loaded."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    is_here = all(leaf.is_fully_addressable for leaf in leaves)
    return is_here and sum(leaf.size for leaf in leaves) < _SMALL


def _digest_on_host(tree: Any) -> int:
    """The same number as `_digest`."""
    total = 0
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        array = np.asarray(leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf))
        bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(np.uint32)
        place = np.full(array.shape, number, np.uint32)
        for axis, size in enumerate(array.shape):
            step = np.arange(size, dtype=np.uint32)
            place = place * np.uint32(size) + step.reshape(-1, *[1] * (array.ndim - axis - 1))
        total += int(np.sum(bits * (np.uint32(2) * place + np.uint32(1)), dtype=np.uint32))
    return total % 2**32


def _differing(found: dict[str, int], saved: dict[str, int]) -> list[str]:
    return [name for name in found if found[name] != saved.get(name, found[name])]


@jax.jit
def _digest(tree: Any) -> jax.Array:
    """The sum of all bits, each element times an odd number of its own, uint32.

    A single element that changes always changes it, and sums of integers are the same however the
    arrays are divided over devices.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        array = jnp.asarray(leaf)
        bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.full(array.shape, number, jnp.uint32)
        for axis, size in enumerate(array.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, array.shape, axis
            )
        total += jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total
