"""Batches for a mesh: each process makes only the rows that its devices hold.

A batch is concatenated from streams of rows. Each stream is a pure function of the seed and its
index, so any number of processes makes the same batches.
"""

from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.parallel import processes
from palr_jax.parallel.sharding import Shards
from palr_jax.training.candidates import MomentBatch
from palr_jax.training.config import FinetuneConfig
from palr_jax.training.step import AnyBatch, Batch


def check_rows(config: FinetuneConfig, shards: Shards) -> None:
    """Checks that a batch, and each of its `accumulate` parts, divides over a mesh.

    Raises:
        UserError: it does not.
    """
    ways, rows = shards.ways("batch"), config.batch_size // config.accumulate
    if rows % ways:
        axes = " x ".join(f"{axis} {shards.mesh.shape[axis]}" for axis in shards.rules.batch)
        parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        least = ways * config.accumulate
        raise UserError(
            f"finetune.batch_size ({config.batch_size}){parts} leaves {rows} rows at a time, which "
            f"{axes} = {ways} devices cannot share: make it a multiple of {least}"
        )


class Feed:
    """Endless global batches; each process holds the rows of its devices."""

    def __init__(
        self, streams: Sequence[grain.IterDataset[dict[str, np.ndarray]]], rows: int, shards: Shards
    ) -> None:
        """Opens the streams that this process needs.

        Args:
            streams: each yields rows // len(streams) rows of every batch, concatenated in order.
            rows: rows of a batch.
            shards: the mesh.
        """
        self._shards, self._sharding = shards, shards.of("batch", None)
        self._rows, self._each = rows, rows // len(streams)
        held = self._sharding.addressable_devices_indices_map((rows, 1)).values()
        starts = sorted({index[0].indices(rows)[:2] for index in held if index})
        needed = {row // self._each for start, stop in starts for row in range(start, stop)}
        self._streams = {number: iter(streams[number]) for number in sorted(needed)}
        self._count = len(streams)

    def __next__(self) -> AnyBatch:
        parts = {number: next(stream) for number, stream in self._streams.items()}
        names = next(iter(parts.values()))
        return as_batch({name: self._globe(parts, name) for name in names})

    def get_state(self) -> list[JsonObject]:
        """The states of all streams, of all processes; every process must call it."""
        local = {number: stream.get_state() for number, stream in self._streams.items()}
        states: dict[int, JsonObject] = {}
        for gathered in processes.gather(local):
            states |= {int(number): state for number, state in gathered.items()}
        return [states[number] for number in range(self._count)]

    def set_state(self, states: list[JsonObject]) -> None:
        """Restores the states from `get_state`, which may have run on another mesh."""
        for number, stream in self._streams.items():
            stream.set_state(states[number])

    def _globe(self, parts: dict[int, dict[str, np.ndarray]], name: str) -> jax.Array:
        widths = next(iter(parts.values()))[name].shape[1:]
        sharding = self._shards.of("batch", *[None] * len(widths))

        def rows(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(self._rows)
            pieces = []
            while start < stop:
                number, first = divmod(start, self._each)
                last = min(first + stop - start, self._each)
                pieces.append(parts[number][name][first:last])
                start += last - first
            return np.concatenate(pieces)

        return jax.make_array_from_callback((self._rows, *widths), sharding, rows)


def as_batch(arrays: dict[str, jax.Array]) -> AnyBatch:
    """The batch with these fields."""
    return MomentBatch(**arrays) if "index_BQ" in arrays else Batch(**arrays)


def fixed_batches(rows: dict[str, np.ndarray], size: int, shards: Shards) -> list[AnyBatch]:
    """Cuts packed rows into batches of `size` rows; the last is padded with empty rows.

    Args:
        rows: packed arrays [R, ...], the same in all processes.
        size: rows of a batch.
        shards: the mesh.
    """
    count = len(next(iter(rows.values())))

    def globe(name: str, start: int) -> jax.Array:
        array = rows[name][start : start + size]
        # No token of an empty row is visible, and the row has no targets.
        empty = np.full((size - len(array), *array.shape[1:]), -1 if name == "horizon_RT" else 0)
        whole = np.concatenate([array, empty.astype(array.dtype)])
        sharding = shards.of("batch", *[None] * (whole.ndim - 1))
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return [
        as_batch({name.replace("_R", "_B"): globe(name, start) for name in rows})
        for start in range(0, count, size)
    ]
