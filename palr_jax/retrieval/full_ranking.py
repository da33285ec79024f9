"""Ranking of the whole catalog, without sampled negatives: ranks of targets, and the best items.

Letters: B users of a chunk, U all users, I items, S places for seen items, K items kept.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from palr_jax.errors import UserError
from palr_jax.ragged import Ragged
from palr_jax.retrieval.interface import TopK

Scores = Callable[[Ragged], jax.Array]
"""Histories of B users → scores [B, I]."""

_CHUNK = 256  # users scored at once


@jax.jit
def rank_targets(scores_BI: jax.Array, target_B: jax.Array, seen_BS: jax.Array) -> jax.Array:
    """Rank of each target among the items its user has not seen, float32 [B], from 1.

    One, plus the unseen items scored strictly higher, plus half of the others scored equally. The
    target takes part even if it was seen. A score that is not a number counts as higher, so a
    broken model cannot look good.

    Args:
        scores_BI: float32.
        target_B: int32.
        seen_BS: int32, the items of the histories; I fills up short rows.
    """
    row_B = jnp.arange(len(target_B))
    rival_BI = _unseen(scores_BI, seen_BS).at[row_B, target_B].set(False)
    target_B1 = scores_BI[row_B, target_B][:, None]
    equal_BI = scores_BI == target_B1
    higher_BI = ~(equal_BI | (scores_BI < target_B1))
    higher_B = jnp.sum(rival_BI & higher_BI, axis=1)
    return 1 + higher_B + jnp.sum(rival_BI & equal_BI, axis=1) / 2


@functools.partial(jax.jit, static_argnames="k")
def top_k(scores_BI: jax.Array, seen_BS: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The `k` unseen items scored highest, best first; of equal items the lower comes first.

    Returns:
        The items, int32 [B, K], and their scores, float32 [B, K]; a score is -inf where fewer than
        `k` items are unseen.
    """
    score_BK, item_BK = jax.lax.top_k(
        jnp.where(_unseen(scores_BI, seen_BS), scores_BI, -jnp.inf), k
    )
    return item_BK.astype(jnp.int32), score_BK


def _unseen(scores_BI: jax.Array, seen_BS: jax.Array) -> jax.Array:
    """bool [B, I]."""
    row_B1 = jnp.arange(len(seen_BS))[:, None]
    return jnp.ones(scores_BI.shape, bool).at[row_B1, seen_BS].set(False, mode="drop")


def ranks(scores: Scores, histories: Ragged, target_U: np.ndarray, num_items: int) -> np.ndarray:
    """`rank_targets` for any number of users: float32 [U].

    Raises:
        UserError: a history holds an item the catalog lacks.
    """
    rank_U = np.zeros(len(histories), np.float32)
    width = _seen_width(histories)
    for users, part in chunks(histories, num_items):
        target_B = np.zeros(len(part), np.int32)
        target_B[: len(target_U[users])] = target_U[users]
        rank_B = rank_targets(scores(part), target_B, part.last(width, fill=num_items))
        rank_U[users] = np.asarray(rank_B)[: len(rank_U[users])]
    return rank_U


def recommend(scores: Scores, histories: Ragged, k: int, num_items: int) -> TopK:
    """`top_k` for any number of users.

    Raises:
        UserError: a history leaves fewer than `k` items, or holds an item the catalog lacks.
    """
    if k > num_items:
        raise UserError(f"{k} items are asked for, but the catalog has {num_items}: ask for fewer")
    item_UK = np.zeros((len(histories), k), np.int32)
    score_UK = np.zeros((len(histories), k), np.float32)
    width = _seen_width(histories)
    for users, part in chunks(histories, num_items):
        item_BK, score_BK = top_k(scores(part), part.last(width, fill=num_items), k)
        item_UK[users] = np.asarray(item_BK)[: len(item_UK[users])]
        score_UK[users] = np.asarray(score_BK)[: len(score_UK[users])]
    short_U = np.isneginf(score_UK[:, -1])
    if short_U.any():
        user = int(short_U.argmax())
        left = num_items - len(np.unique(histories[user]))
        raise UserError(
            f"history {user} leaves {left} unseen items of {num_items}, but {k} are asked for: "
            "ask for fewer"
        )
    return TopK(item_UK, score_UK)


def chunks(histories: Ragged, num_items: int) -> Iterator[tuple[slice, Ragged]]:
    """Cuts users into chunks of one size, so that every chunk runs the same compiled program.

    Yields:
        The users of the chunk, and their histories followed by empty ones up to the size. The size
        is a power of two, so that calls with few users compile few programs and score few rows.

    Raises:
        UserError: a history holds an item the catalog lacks.
    """
    _check_items(histories, num_items)
    size = min(_CHUNK, _power_of_two(len(histories)))
    for start in range(0, len(histories), size):
        users = slice(start, min(start + size, len(histories)))
        offsets_R1 = histories.offsets_R1[users.start : users.stop + 1]
        length_B = np.zeros(size, np.int64)
        length_B[: users.stop - users.start] = np.diff(offsets_R1)
        values_N = histories.values_N[offsets_R1[0] : offsets_R1[-1]]
        yield users, Ragged.from_lengths(values_N, length_B)


def _check_items(histories: Ragged, num_items: int) -> None:
    wrong_N = (histories.values_N < 0) | (histories.values_N >= num_items)
    if wrong_N.any():
        place = int(wrong_N.argmax())
        user = int(np.searchsorted(histories.offsets_R1, place, side="right")) - 1
        raise UserError(
            f"history {user} holds item {histories.values_N[place]}, but the catalog has "
            f"{num_items} items counted from 0: give items of the catalog that was trained on"
        )


def _seen_width(histories: Ragged) -> int:
    """Places for the longest history; a power of two, so that few programs are compiled."""
    return _power_of_two(int(histories.lengths_R.max(initial=1)))


def _power_of_two(least: int) -> int:
    return 1 << (max(least, 1) - 1).bit_length()
