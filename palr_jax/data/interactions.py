"""The interaction log: (user, item, time)."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class InteractionLog:
    """Interactions with users and items as indices.

    Attributes:
        user_N: int32, user of each interaction, an index into `user_ids`.
        item_N: int32, item of each interaction, an index into `item_ids`.
        timestamp_N: int64 or float64, in the unit of the source.
        user_ids: str, ids of the users in the source.
        item_ids: str, ids of the items in the source.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    timestamp_N: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.user_N)

    def take(self, rows: np.ndarray) -> "InteractionLog":
        """The interactions at `rows` (indices or a mask); users and items keep their indices."""
        return replace(
            self,
            user_N=self.user_N[rows],
            item_N=self.item_N[rows],
            timestamp_N=self.timestamp_N[rows],
        )


def encode(interactions: pl.DataFrame) -> InteractionLog:
    """The log of a table (user, item, timestamp), users and items in order of first appearance."""
    user_N, user_ids = coded(interactions["user"])
    item_N, item_ids = coded(interactions["item"])
    return InteractionLog(user_N, item_N, interactions["timestamp"].to_numpy(), user_ids, item_ids)


def by_time(log: InteractionLog) -> InteractionLog:
    """The log sorted by time; ties keep their order."""
    return log.take(np.argsort(log.timestamp_N, kind="stable"))


def without_repeats(log: InteractionLog) -> InteractionLog:
    """The log with the first interaction of each pair of user and item."""
    pair_N = log.user_N.astype(np.int64) * len(log.item_ids) + log.item_N
    order_N = np.argsort(pair_N, kind="stable")
    pair_N = pair_N[order_N]
    is_first_N = np.ones(len(log), bool)
    is_first_N[order_N[1:]] = pair_N[1:] != pair_N[:-1]
    return log.take(is_first_N)


def compact(log: InteractionLog) -> InteractionLog:
    """The log without users and items that do not occur; the others keep their relative order."""
    user_N, user_ids = _compact(log.user_N, log.user_ids)
    item_N, item_ids = _compact(log.item_N, log.item_ids)
    return InteractionLog(user_N, item_N, log.timestamp_N, user_ids, item_ids)


def sequences(log: InteractionLog) -> Ragged:
    """The items of each user in the order of the log."""
    order = np.argsort(log.user_N, kind="stable")
    lengths_U = np.bincount(log.user_N, minlength=len(log.user_ids))
    return Ragged.from_lengths(log.item_N[order], lengths_U)


def coded(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The index of each text, int32, and the distinct texts in order of first appearance."""
    ids = column.unique(maintain_order=True)
    codes_N = column.cast(pl.Enum(ids)).to_physical().to_numpy().astype(np.int32)
    return codes_N, np.array(ids.to_list(), dtype=np.str_)


def _compact(code_N: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    occurs = np.bincount(code_N, minlength=len(ids)) > 0
    rank = np.cumsum(occurs, dtype=np.int32) - 1
    return rank[code_N].astype(np.int32, copy=False), ids[occurs]
