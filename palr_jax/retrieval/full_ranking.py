"""Ranking of the whole catalog, without sampled negatives: ranks of targets, and the top items.

Users and items are processed in chunks of fixed size, and the items are sharded over the devices of
this process, or of all processes, which then call these functions together. A device holds one
chunk of scores at a time, so memory does not grow with the number of users, and grows with the
number of items only by the model's arrays per item.

Shapes: C items of a chunk, S seen items of a user, padded.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from palr_jax.errors import UserError
from palr_jax.padding import to_multiple, to_power_of_two
from palr_jax.parallel.sharding import fetch
from palr_jax.ragged import Ragged
from palr_jax.retrieval.interface import TopK
from palr_jax.trees import PyTree

_USERS = 256  # users of a chunk
_ITEMS = 16_384  # items of a chunk on one device
_AXIS = "items"


Score: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
"""(queries of B users, C items) → their scores [B, C]."""


@dataclass(frozen=True)
class Scorer:
    """How a retriever computes its scores.

    Attributes:
        queries: histories of B users → arrays that represent them, a pytree of [B, ...].
        items: arrays that represent the items, a pytree of [I, ...].
        score: queries of B users and C items → scores, float32 [B, C]. A pure module-level
            function, because the cache of compiled programs is keyed by it.
        devices: devices of all processes over whose order `items` are sharded, padded to
            `padded(I, len(devices))`; `queries` must be replicated on them. None leaves it to this
            module.
    """

    queries: Callable[[Ragged], PyTree]
    items: PyTree
    score: Score
    devices: tuple[jax.Device, ...] | None = None


def inner_product(query_BD: jax.Array, item_CD: jax.Array) -> jax.Array:
    """The score function of most models: [B, C]."""
    return query_BD @ item_CD.T


def ranks(scorer: Scorer, histories: Ragged, target_U: np.ndarray, num_items: int) -> np.ndarray:
    """Rank of each target among the items its user has not seen: float32 [U], from 1.

    The rank is 1, plus the number of unseen items with a strictly higher score, plus half the
    number of other items with an equal score. The target is ranked even if it was seen. NaN counts
    as higher, so that a broken model gets bad ranks.

    Raises:
        UserError: a history holds an item the catalog lacks.
    """
    rank_U = np.zeros(len(histories), np.float32)
    mesh, items = _spread(scorer, num_items)
    found: list[tuple[np.ndarray, jax.Array]] = []
    for users_B, part in chunks(histories, num_items):
        target_B = np.zeros(len(part), np.int32)
        target_B[: len(users_B)] = target_U[users_B]
        queries = jax.device_put(scorer.queries(part), NamedSharding(mesh, P()))
        rank_B, _, _ = _rank(
            scorer.score, mesh, 0, num_items, queries, items, target_B, _seen(part, num_items)
        )
        # Fetch at the end, so that the next chunk is prepared while this one is ranked.
        found.append((users_B, rank_B))
    for users_B, rank_B in found:
        rank_U[users_B] = np.asarray(rank_B)[: len(users_B)]
    return rank_U


def recommend(scorer: Scorer, histories: Ragged, k: int, num_items: int) -> TopK:
    """The `k` unseen items with the highest scores, best first; ties are ordered by item id.

    A user with fewer unseen items gets all of them, padded with items -1 and scores -inf.

    Raises:
        UserError: a history holds an item the catalog lacks.
    """
    item_UK = np.full((len(histories), k), -1, np.int32)
    score_UK = np.full((len(histories), k), -np.inf, np.float32)
    K = min(k, num_items)
    mesh, items = _spread(scorer, num_items)
    for users_B, part in chunks(histories, num_items):
        queries = jax.device_put(scorer.queries(part), NamedSharding(mesh, P()))
        unused_B = np.zeros(len(part), np.int32)  # targets, whose ranks are ignored
        seen_BS = _seen(part, num_items)
        _, item_BK, score_BK = _rank(
            scorer.score, mesh, K, num_items, queries, items, unused_B, seen_BS
        )
        item_UK[users_B, :K] = np.asarray(item_BK)[: len(users_B)]
        score_UK[users_B, :K] = np.asarray(score_BK)[: len(users_B)]
        # Seen items are masked with -inf, which a model may also return for unseen ones. So cut by
        # the number of unseen items, not by score.
        unseen_B = num_items - (seen_BS < num_items).sum(axis=1)[: len(users_B)]
        beyond_BK = np.arange(k) >= unseen_B[:, None]
        item_UK[users_B] = np.where(beyond_BK, -1, item_UK[users_B])
        score_UK[users_B] = np.where(beyond_BK, -np.inf, score_UK[users_B])
    return TopK(item_UK, score_UK)


def scores(scorer: Scorer, histories: Ragged, num_items: int) -> jax.Array:
    """Scores of all items, seen or not: float32 [U, I].

    Raises:
        UserError: a history holds an item the catalog lacks.
    """
    score_UI = np.zeros((len(histories), num_items), np.float32)
    for users_B, part in chunks(histories, num_items):
        score_BI = _all_scores(scorer.score, scorer.queries(part), scorer.items)
        score_UI[users_B] = fetch(score_BI)[: len(users_B), :num_items]
    return jnp.asarray(score_UI)


def chunks(histories: Ragged, num_items: int) -> Iterator[tuple[np.ndarray, Ragged]]:
    """Cuts users into chunks of one size, short histories first.

    Users with histories of similar length share a chunk, which reduces padding.

    Yields:
        The users of the chunk, and their histories padded to the chunk size with empty ones. The
        size is a power of two, so that calls with few users compile few programs and score few
        rows.

    Raises:
        UserError: a history holds an item the catalog lacks.
    """
    _check_items(histories, num_items)
    size = min(_USERS, to_power_of_two(max(len(histories), 1)))
    order_U = np.argsort(histories.lengths_R, kind="stable")
    for start in range(0, len(histories), size):
        users_B = order_U[start : start + size]
        part = histories.take(users_B)
        length_B = np.zeros(size, np.int64)
        length_B[: len(users_B)] = part.lengths_R
        yield users_B, Ragged.from_lengths(part.values_N, length_B)


def bucket(length: int) -> int:
    """The smallest of 16, 64, 256, … that is at least `length`: few widths, few compilations."""
    width = 16
    while width < length:
        width *= 4
    return width


def _seen(part: Ragged, num_items: int) -> np.ndarray:
    """The distinct items of each history, padded with `num_items`: int32 [B, S]."""
    seen_BS = np.sort(part.last(bucket(int(part.lengths_R.max(initial=1))), fill=num_items))
    seen_BS[:, 1:][seen_BS[:, 1:] == seen_BS[:, :-1]] = num_items
    return seen_BS


def padded(num_items: int, devices: int) -> int:
    """The number of items after padding to equally many chunks on each device."""
    shard = -(-num_items // devices)
    return devices * to_multiple(shard, -(-shard // _ITEMS))


def _spread(scorer: Scorer, num_items: int) -> tuple[Mesh, PyTree]:
    """The items sharded over devices, and the mesh of these."""
    if scorer.devices is not None:
        return Mesh(np.array(scorer.devices), (_AXIS,)), scorer.items
    devices = np.array(_devices())
    mesh = Mesh(devices, (_AXIS,))
    padding = padded(num_items, len(devices)) - num_items
    sharding = NamedSharding(mesh, P(_AXIS))

    def spread(array: jax.Array) -> jax.Array:
        longer = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1)) if padding else array
        return jax.device_put(longer, sharding)

    return mesh, jax.tree.map(spread, scorer.items)


def _devices() -> list[jax.Device]:
    """The devices of this process, where a scorer names none."""
    return jax.local_devices()


@functools.partial(jax.jit, static_argnames=("score", "mesh", "k"))
def _rank(
    score: Score,
    mesh: Mesh,
    k: int,
    num_items: int,
    queries: PyTree,
    items: PyTree,
    target_B: jax.Array,
    seen_BS: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rank of the target float32 [B], the top items int32 [B, K] and their scores [B, K]."""
    local = functools.partial(_rank_on_device, score, k)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), P(_AXIS), P(), P()),
        out_specs=P(),
        check_vma=False,  # JAX does not infer that all_gather and psum give replicated values
    )(jnp.int32(num_items), queries, items, target_B, seen_BS)


def _rank_on_device(
    score: Score,
    k: int,
    num_items: jax.Array,
    queries: PyTree,
    items: PyTree,
    target_B: jax.Array,
    seen_BS: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ranks one device's items chunk by chunk, then combines the results of all devices."""
    shard = len(jax.tree.leaves(items)[0])
    number = -(-shard // _ITEMS)
    size = shard // number
    first = jax.lax.axis_index(_AXIS) * shard
    row_B1 = jnp.arange(len(target_B))[:, None]

    def chunk(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores of a chunk [B, C], and its first item."""
        part = jax.tree.map(
            lambda array: jax.lax.dynamic_slice_in_dim(array, index * size, size), items
        )
        return score(queries, part), first + index * size

    def within(item: jax.Array, start: jax.Array) -> jax.Array:
        """Columns of items in a chunk; `size`, out of bounds, for items of other chunks."""
        column = item - start
        return jnp.where((column >= 0) & (column < size), column, size)

    def find(target_score_B1: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        score_BC, start = chunk(index)
        column_B1 = within(target_B, start)[:, None]
        found_B1 = jnp.take_along_axis(score_BC, jnp.minimum(column_B1, size - 1), axis=1)
        return jnp.where(column_B1 < size, found_B1, target_score_B1), None

    # Each chunk is scored here and again below. A single chunk is scored once, because the compiler
    # shares the result when the loop is unrolled.
    loop = functools.partial(jax.lax.scan, xs=jnp.arange(number), unroll=number == 1)
    found_B1, _ = loop(find, jnp.full((len(target_B), 1), -jnp.inf))
    here_B1 = ((target_B >= first) & (target_B < first + shard))[:, None]
    target_score_B1 = jax.lax.psum(jnp.where(here_B1, found_B1, 0), _AXIS)

    def count(
        carry: tuple[jax.Array, jax.Array, jax.Array], index: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        twice_B, best_BK, item_BK = carry
        score_BC, start = chunk(index)
        # Count all items in one pass over the scores, then subtract the seen ones: masking them in
        # the scores would take several passes.
        exists_C = start + jnp.arange(size) < num_items
        twice_B += jnp.sum(jnp.where(exists_C, _ahead(score_BC, target_score_B1), 0), 1)
        column_BS = within(seen_BS, start)
        seen_score_BS = jnp.take_along_axis(score_BC, jnp.minimum(column_BS, size - 1), axis=1)
        rival_BS = (column_BS < size) & (seen_BS < num_items) & (seen_BS != target_B[:, None])
        twice_B -= jnp.sum(jnp.where(rival_BS, _ahead(seen_score_BS, target_score_B1), 0), 1)
        if k:
            masked_BC = jnp.where(exists_C, score_BC, -jnp.inf)
            masked_BC = masked_BC.at[row_B1, column_BS].set(-jnp.inf, mode="drop")
            more_BK, column_BK = jax.lax.top_k(masked_BC, min(k, size))
            # Earlier items come first, so that they win ties.
            best_BK, item_BK = _best(
                k,
                jnp.concatenate([best_BK, more_BK], 1),
                jnp.concatenate([item_BK, start + column_BK], 1),
            )
        return (twice_B, best_BK, item_BK), None

    lowest_BK = jnp.full((len(target_B), k), -jnp.inf)
    first_BK = jnp.zeros((len(target_B), k), jnp.int32)
    start = (jnp.zeros(len(target_B), jnp.int32), lowest_BK, first_BK)
    (twice_B, best_BK, item_BK), _ = loop(count, start)
    if k:
        gather = functools.partial(jax.lax.all_gather, axis_name=_AXIS, axis=1, tiled=True)
        best_BK, item_BK = _best(k, gather(best_BK), gather(item_BK))
    # The target itself was counted among all items.
    twice_B = jax.lax.psum(twice_B, _AXIS) - _ahead(target_score_B1, target_score_B1)[:, 0]
    return 1 + twice_B / 2, item_BK, best_BK


def _ahead(score_BX: jax.Array, target_score_B1: jax.Array) -> jax.Array:
    """2 for scores above the target's and for NaN, 1 for equal scores, 0 for lower ones."""
    higher_BX = ~(score_BX <= target_score_B1)
    return 2 * higher_BX.astype(jnp.int32) + (score_BX == target_score_B1)


def _best(k: int, score_BX: jax.Array, item_BX: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `k` highest scores and their items; ties go to the lower column."""
    score_BK, column_BK = jax.lax.top_k(score_BX, k)
    return score_BK, jnp.take_along_axis(item_BX, column_BK, axis=1)


@functools.partial(jax.jit, static_argnames="score")
def _all_scores(score: Score, queries: PyTree, items: PyTree) -> jax.Array:
    return score(queries, items)


def _check_items(histories: Ragged, num_items: int) -> None:
    wrong_N = (histories.values_N < 0) | (histories.values_N >= num_items)
    if wrong_N.any():
        index = int(wrong_N.argmax())
        user = int(np.searchsorted(histories.offsets_R1, index, side="right")) - 1
        raise UserError(
            f"history {user} holds item {histories.values_N[index]}, but the catalog has "
            f"{num_items} items counted from 0: use items of the catalog that was trained on"
        )
