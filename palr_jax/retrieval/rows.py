"""Histories as rows of fixed length, for the sequential retrievers.

The history of a user begins with a start token, so that the first item has something to be
predicted from. The start token is `num_items`, one past the last item.

Letters: U users, N tokens of all users, R rows, T places of a row.
"""

from dataclasses import dataclass

import jax
import numpy as np

from palr_jax.ragged import Ragged
from palr_jax.retrieval.losses import NO_TARGET


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


def training_rows(
    histories: Ragged, num_items: int, length: int, batch_size: int, seed: int, epoch: int
) -> Rows:
    """One epoch: every item of every history is a target exactly once.

    The histories follow each other in a random order as one stream, cut every `length` tokens: rows
    are full whatever the lengths of the histories, and a long history is cut elsewhere each epoch.
    The result is a pure function of the arguments and has the same shape every epoch; R is a
    multiple of `batch_size`.
    """
    rng = np.random.default_rng([seed, epoch])
    order_U = rng.permutation(len(histories))
    length_U = histories.lengths_R[order_U]
    first_U = np.cumsum(length_U) - length_U
    total = int(length_U.sum())
    place_N = np.arange(total) - np.repeat(first_U, length_U)
    source_N = np.repeat(histories.offsets_R1[order_U], length_U) + place_N
    target_N = histories.values_N[source_N]
    item_N = np.where(place_N == 0, num_items, np.roll(target_N, 1))

    batch = batch_size * length
    size = -(-(total + length - 1) // batch) * batch
    before = int(rng.integers(length))

    def rows(values_N: np.ndarray, fill: int) -> np.ndarray:
        padded = np.full(size, fill, np.int32)
        padded[before : before + total] = values_N
        return padded.reshape(-1, length)

    place_RT = rows(place_N, fill=length)
    shuffled_R = rng.permutation(len(place_RT))
    return Rows(
        item_RT=rows(item_N, fill=num_items)[shuffled_R],
        position_RT=np.minimum(place_RT, np.arange(length, dtype=np.int32))[shuffled_R],
        target_RT=rows(target_N, fill=NO_TARGET)[shuffled_R],
    )


def inference_rows(histories: Ragged, num_items: int, length: int) -> Rows:
    """One row per history with its newest items at the right end, so that the last column predicts.

    A history shorter than `length` is led by the start token; an empty one is the start token
    alone. The columns to the left are a piece of their own.
    """
    used_R1 = np.minimum(histories.lengths_R + 1, length)[:, None]
    column_T = np.arange(length)
    start_R1 = length - used_R1
    return Rows(
        item_RT=histories.last(length, fill=num_items),
        position_RT=np.where(column_T < start_R1, column_T, column_T - start_R1).astype(np.int32),
        target_RT=np.full((len(histories), length), NO_TARGET, np.int32),
    )
