"""Histories as rows of fixed length, for the sequential retrievers.

Two training objectives exist. *Next item*: every item is predicted from those before it; a history
begins with a start token, from which its first item is predicted. *Cloze*: some items are masked
and predicted from all others; at inference a mask token is appended to the history. The start token
and the mask token are both `num_items`, one past the last item.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from palr_jax.padding import to_multiple
from palr_jax.ragged import Ragged
from palr_jax.retrieval.losses import NO_TARGET

# Cloze: the share of masked items, and of histories where only the last item is masked.
_MASKED = 0.25
_ONLY_LAST = 0.2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HistoryRows:
    """Rows of tokens; a row holds one or more pieces of histories, one after the other.

    Attributes:
        item_RT: int32, items, or the start or mask token.
        position_RT: int32, position of the token in its piece, from 0. A token at column t belongs
            to the piece that begins at column `t - position`, and sees no token before that column.
        target_RT: int32, the item to predict, or NO_TARGET.
    """

    item_RT: np.ndarray | jax.Array
    position_RT: np.ndarray | jax.Array
    target_RT: np.ndarray | jax.Array


def next_item_rows(
    histories: Ragged, num_items: int, length: int, batch_size: int, seed: int, epoch: int
) -> HistoryRows:
    """One epoch: every item of every history is a target exactly once.

    The histories are concatenated in random order and the stream is cut every `length` tokens. So
    rows are full whatever the lengths of the histories, and a long history is cut at different
    positions each epoch. The result is a pure function of the arguments and has the same shape
    every epoch; R is a multiple of `batch_size`.
    """
    rng = np.random.default_rng([seed, epoch])
    item_N, position_N = _stream(histories, rng)
    return _cut(
        rng, length, batch_size, num_items, position_N,
        item_N=np.where(position_N == 0, num_items, np.roll(item_N, 1)), target_N=item_N,
    )  # fmt: skip


def cloze_rows(
    histories: Ragged, num_items: int, length: int, batch_size: int, seed: int, epoch: int
) -> HistoryRows:
    """One epoch of masked items (Sun et al. 2019, BERT4Rec, section 3.6).

    Most histories have a random share of their items masked. The others have only the last item
    masked, as at inference. Rows are made as in `next_item_rows`.
    """
    rng = np.random.default_rng([seed, epoch])
    item_N, position_N = _stream(histories, rng)
    last_N = np.roll(position_N, -1) == 0
    history_N = np.cumsum(position_N == 0) - 1
    only_last_U = rng.random(len(histories) + 1) < _ONLY_LAST
    masked_N = np.where(only_last_U[history_N], last_N, rng.random(len(item_N)) < _MASKED)
    return _cut(
        rng, length, batch_size, num_items, position_N,
        item_N=np.where(masked_N, num_items, item_N),
        target_N=np.where(masked_N, item_N, NO_TARGET),
    )  # fmt: skip


def _stream(histories: Ragged, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The histories concatenated in random order: items and their positions, both [N]."""
    order_U = rng.permutation(len(histories))
    length_U = histories.lengths_R[order_U]
    first_U = np.cumsum(length_U) - length_U
    position_N = np.arange(int(length_U.sum())) - np.repeat(first_U, length_U)
    source_N = np.repeat(histories.offsets_R1[order_U], length_U) + position_N
    return histories.values_N[source_N], position_N


def _cut(
    rng: np.random.Generator,
    length: int,
    batch_size: int,
    num_items: int,
    position_N: np.ndarray,
    item_N: np.ndarray,
    target_N: np.ndarray,
) -> HistoryRows:
    """Cuts a stream every `length` tokens, from a random offset, and shuffles the rows."""
    batch = batch_size * length
    size = to_multiple(len(item_N) + length - 1, batch)
    before = int(rng.integers(length))

    def rows(values_N: np.ndarray, fill: int) -> np.ndarray:
        padded = np.full(size, fill, np.int32)
        padded[before : before + len(values_N)] = values_N
        return padded.reshape(-1, length)

    position_RT = rows(position_N, fill=length)
    shuffled_R = rng.permutation(len(position_RT))
    return HistoryRows(
        item_RT=rows(item_N, fill=num_items)[shuffled_R],
        position_RT=np.minimum(position_RT, np.arange(length, dtype=np.int32))[shuffled_R],
        target_RT=rows(target_N, fill=NO_TARGET)[shuffled_R],
    )


def after_history(histories: Ragged, num_items: int, length: int) -> HistoryRows:
    """One row per history with its newest items right-aligned; the last column predicts.

    The start token precedes a history shorter than `length`; an empty history is only the start
    token. The padding to the left is a separate piece.
    """
    return _right_aligned(histories, histories.last(length, fill=num_items))


def mask_after_history(histories: Ragged, num_items: int, length: int) -> HistoryRows:
    """One row per history with its newest items and a mask token after them, which predicts."""
    newest_RT = histories.last(length - 1, fill=num_items)
    mask_R1 = np.full((len(histories), 1), num_items, np.int32)
    return _right_aligned(histories, np.concatenate([newest_RT, mask_R1], axis=1))


def _right_aligned(histories: Ragged, item_RT: np.ndarray) -> HistoryRows:
    """Rows whose last piece is one token longer than the history."""
    length = item_RT.shape[1]
    used_R1 = np.minimum(histories.lengths_R + 1, length)[:, None]
    column_T = np.arange(length)
    start_R1 = length - used_R1
    return HistoryRows(
        item_RT=item_RT,
        position_RT=np.where(column_T < start_R1, column_T, column_T - start_R1).astype(np.int32),
        target_RT=np.full((len(histories), length), NO_TARGET, np.int32),
    )


class Objective(NamedTuple):
    """How rows are made from histories: for training, and for inference with the same network."""

    training: Callable[[Ragged, int, int, int, int, int], HistoryRows]
    inference: Callable[[Ragged, int, int], HistoryRows]


NEXT_ITEM = Objective(next_item_rows, after_history)
CLOZE = Objective(cloze_rows, mask_after_history)
