"""The grain pipeline: examples, packed into rows, in batches.

Shapes: B rows, T tokens a row, M label tokens a row.
"""

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from palr_jax.instruct.examples import ExampleMaker

# Bins that are open at a time: enough to leave little padding, few enough that examples of far
# epochs do not meet.
_BINS = 32


@dataclass(frozen=True)
class Packing:
    """The static shapes of a batch.

    Attributes:
        rows: B, packed rows in a batch.
        length: T, tokens in a row.
        label_length: M, label tokens in a row; logits are computed for these alone.
    """

    rows: int
    length: int
    label_length: int


class _ExampleSource:
    """Index → example, for ever: every epoch visits all users in a new order."""

    def __init__(self, maker: ExampleMaker, users: np.ndarray) -> None:
        self._maker = maker
        self._users = users

    def __len__(self) -> int:
        return int(np.iinfo(np.int32).max)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(int(index), len(self._users))
        shuffled = grain.experimental.index_shuffle(
            place,
            max_index=len(self._users) - 1,
            seed=int(np.random.SeedSequence([self._maker.seed, epoch]).generate_state(1)[0]),
            rounds=4,
        )
        example = self._maker.example(int(self._users[shuffled]), epoch)
        # The end token is predicted and never read, so the last label token stays out.
        tokens = np.concatenate([example.prompt_T, example.label_M[:-1]])
        index_M = len(example.prompt_T) - 1 + np.arange(len(example.label_M), dtype=np.int32)
        return {"tokens": tokens, "target": example.label_M, "target_index": index_M}


def batches(maker: ExampleMaker, users: np.ndarray, packing: Packing) -> grain.IterDataset:
    """An endless, checkpointable dataset of packed batches.

    Each element is a dict of int32 arrays: `tokens_BT`, `position_BT` (within the example),
    `segment_BT` (the example of each token, from 1; 0 is padding), `target_BM` (label tokens),
    `target_index_BM` (the place in the row whose output predicts it) and `weight_BM` (1, or 0
    for padding).
    """
    examples = grain.MapDataset.source(_ExampleSource(maker, users)).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)
    )
    lengths = {
        "tokens": packing.length,
        "target": packing.label_length,
        "target_index": packing.label_length,
    }
    packed = grain.experimental.BestFitPackIterDataset(
        examples, length_struct=lengths, num_packing_bins=_BINS, seed=maker.seed
    )
    return packed.batch(packing.rows).map(_to_batch)


def _to_batch(packed: dict[str, Any]) -> dict[str, np.ndarray]:
    """Names the fields and turns places within examples into places within rows."""
    segment_BT = packed["tokens_segment_ids"]
    target_segment_BM = packed["target_segment_ids"]
    first_BM = (segment_BT[:, None, :] == np.maximum(target_segment_BM, 1)[:, :, None]).argmax(-1)
    return {
        "tokens_BT": packed["tokens"],
        "position_BT": packed["tokens_positions"],
        "segment_BT": segment_BT,
        "target_BM": packed["target"],
        "target_index_BM": (first_BM + packed["target_index"]).astype(np.int32),
        "weight_BM": (target_segment_BM > 0).astype(np.int32),
    }
