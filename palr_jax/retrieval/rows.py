"""Histories as rows of fixed length, for the sequential retrievers.

There are two ways to learn from a history. *Next item*: every item is predicted from those before
it; a history begins with a start token, so that its first item has something to be predicted from.
*Cloze*: some items are hidden and predicted from all others; to use it, a hidden item is put behind
the history. The start token and the hidden item are both `num_items`, one past the last item.

Letters: U users, N tokens of all users, R rows, T places of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from palr_jax.padding import to_multiple
from palr_jax.ragged import Ragged
from palr_jax.retrieval.losses import NO_TARGET

# Shares of a cloze: items that are hidden, and histories of which the last item alone is hidden.
_HIDDEN = 0.25
_ONLY_LAST = 0.2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Rows of tokens; a row holds one piece of a history or several, one after the other.

    Attributes:
        item_RT: int32, items, or the start token.
        position_RT: int32, place of the token in its piece, from 0. A token at column t belongs to
            the piece that begins at column `t - position`, and sees nothing before it.
        target_RT: int32, the item that follows, or NO_TARGET.
    """

    item_RT: np.ndarray | jax.Array
    position_RT: np.ndarray | jax.Array
    target_RT: np.ndarray | jax.Array


def next_item_rows(
    histories: Ragged, num_items: int, length: int, batch_size: int, seed: int, epoch: int
) -> Rows:
    """One epoch: every item of every history is a target exactly once.

    The histories follow each other in a random order as one stream, cut every `length` tokens: rows
    are full whatever the lengths of the histories, and a long history is cut elsewhere each epoch.
    The result is a pure function of the arguments and has the same shape every epoch; R is a
    multiple of `batch_size`.
    """
    rng = np.random.default_rng([seed, epoch])
    item_N, place_N = _stream(histories, rng)
    return _cut(
        rng, length, batch_size, num_items, place_N,
        item_N=np.where(place_N == 0, num_items, np.roll(item_N, 1)), target_N=item_N,
    )  # fmt: skip


def cloze_rows(
    histories: Ragged, num_items: int, length: int, batch_size: int, seed: int, epoch: int
) -> Rows:
    """One epoch of hidden items (Sun et al. 2019, BERT4Rec, section 3.6).

    Of most histories a share of the items is hidden, of the others the last item alone, which is
    what using the model is like. Rows are made as by `next_item_rows`.
    """
    rng = np.random.default_rng([seed, epoch])
    item_N, place_N = _stream(histories, rng)
    last_N = np.roll(place_N, -1) == 0
    history_N = np.cumsum(place_N == 0) - 1
    only_last_U = rng.random(len(histories) + 1) < _ONLY_LAST
    hidden_N = np.where(only_last_U[history_N], last_N, rng.random(len(item_N)) < _HIDDEN)
    return _cut(
        rng, length, batch_size, num_items, place_N,
        item_N=np.where(hidden_N, num_items, item_N),
        target_N=np.where(hidden_N, item_N, NO_TARGET),
    )  # fmt: skip


def _stream(histories: Ragged, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The histories one after the other in a random order: items and their places, [N] both."""
    order_U = rng.permutation(len(histories))
    length_U = histories.lengths_R[order_U]
    first_U = np.cumsum(length_U) - length_U
    place_N = np.arange(int(length_U.sum())) - np.repeat(first_U, length_U)
    source_N = np.repeat(histories.offsets_R1[order_U], length_U) + place_N
    return histories.values_N[source_N], place_N


def _cut(
    rng: np.random.Generator,
    length: int,
    batch_size: int,
    num_items: int,
    place_N: np.ndarray,
    item_N: np.ndarray,
    target_N: np.ndarray,
) -> Rows:
    """Cuts a stream every `length` tokens, at places drawn by `rng`, and shuffles the rows."""
    batch = batch_size * length
    size = to_multiple(len(item_N) + length - 1, batch)
    before = int(rng.integers(length))

    def rows(values_N: np.ndarray, fill: int) -> np.ndarray:
        padded = np.full(size, fill, np.int32)
        padded[before : before + len(values_N)] = values_N
        return padded.reshape(-1, length)

    place_RT = rows(place_N, fill=length)
    shuffled_R = rng.permutation(len(place_RT))
    return Rows(
        item_RT=rows(item_N, fill=num_items)[shuffled_R],
        position_RT=np.minimum(place_RT, np.arange(length, dtype=np.int32))[shuffled_R],
        target_RT=rows(target_N, fill=NO_TARGET)[shuffled_R],
    )


def after_history(histories: Ragged, num_items: int, length: int) -> Rows:
    """One row per history with its newest items at the right end, so that the last column predicts.

    A history shorter than `length` is led by the start token; an empty one is the start token
    alone. The columns to the left are a piece of their own.
    """
    return _right_aligned(histories, histories.last(length, fill=num_items))


def hidden_behind_history(histories: Ragged, num_items: int, length: int) -> Rows:
    """One row per history with its newest items and a hidden one behind them, which predicts."""
    newest_RT = histories.last(length - 1, fill=num_items)
    hidden_R1 = np.full((len(histories), 1), num_items, np.int32)
    return _right_aligned(histories, np.concatenate([newest_RT, hidden_R1], axis=1))


def _right_aligned(histories: Ragged, item_RT: np.ndarray) -> Rows:
    """Rows of which the right end, one longer than the history, is a piece."""
    length = item_RT.shape[1]
    used_R1 = np.minimum(histories.lengths_R + 1, length)[:, None]
    column_T = np.arange(length)
    start_R1 = length - used_R1
    return Rows(
        item_RT=item_RT,
        position_RT=np.where(column_T < start_R1, column_T, column_T - start_R1).astype(np.int32),
        target_RT=np.full((len(histories), length), NO_TARGET, np.int32),
    )


class Layout(NamedTuple):
    """A way to learn from histories, and the way to use what was learned."""

    training: Callable[[Ragged, int, int, int, int, int], Rows]
    inference: Callable[[Ragged, int, int], Rows]


NEXT_ITEM = Layout(next_item_rows, after_history)
CLOZE = Layout(cloze_rows, hidden_behind_history)
