"""Slates that a ranker writes item by item.

Shapes: U users, B users of a batch, C candidates, K items of a slate, Y seen items of a user.
"""

from collections.abc import Sequence

import jax
import numpy as np

from palr_jax.decoding.generate import Mode, Slate, generate
from palr_jax.decoding.search import search
from palr_jax.decoding.trie import build
from palr_jax.io.progress import Advance
from palr_jax.parallel.sharding import fetch
from palr_jax.ragged import Ragged
from palr_jax.ranking.batches import padded
from palr_jax.ranking.ranker import Ranker, check_numbers


def write_from_candidates(
    ranker: Ranker,
    histories: Ragged,
    profiles: Sequence[str],
    candidates_UC: np.ndarray,
    k: int,
    advance: Advance,
    mode: Mode = "greedy",
    temperature: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Slates written item by item from the candidates, int32 [U, K]; padded with -1.

    Args:
        ranker: of the run.
        histories: items per user, oldest first; none of them is written.
        profiles: a sentence per user.
        candidates_UC: item indices, padded with -1.
        k: items of a slate.
        advance: reports finished users.
        mode: how the next item is chosen.
        temperature: of sample.
        seed: of sample; what a user gets does not depend on the other users.

    Raises:
        UserError: the model returned NaN.
    """
    prompts = ranker.prompts(histories, profiles, candidates_UC)
    prefix = ranker.prefix(with_candidates=True)
    sizes = ranker.fit(ranker.sizes(candidates_UC))
    slate_UK = np.full((len(histories), k), -1, np.int32)
    key_U = jax.random.split(jax.random.key(seed), len(histories))
    for rows_B in ranker.batches(prompts, advance):
        items_BC, seen_BY = candidates_UC[rows_B], _seen(histories, rows_B)
        allowed_BC = (items_BC >= 0) & (items_BC[:, :, None] != seen_BY[:, None]).all(axis=2)
        trie = build(ranker.items, items_BC)
        tokens_BT, length_B = ranker.shards.spread(padded(prompts.tokens.take(rows_B)))
        written = generate(
            ranker.model, tokens_BT, length_B, trie, allowed_BC, k, mode, temperature,
            key_U[rows_B], sizes, prefix,
        )  # fmt: skip
        check_numbers(fetch(written.logp_BK))
        slate_UK[rows_B] = _items_of(written, items_BC)
    return slate_UK


def write_from_catalog(
    ranker: Ranker,
    histories: Ragged,
    profiles: Sequence[str],
    k: int,
    advance: Advance,
    width: int = 1,
) -> np.ndarray:
    """Slates written item by item from all unseen items, int32 [U, K].

    Args:
        ranker: of the run.
        histories: items per user, oldest first; none of them is written.
        profiles: a sentence per user.
        k: items of a slate.
        advance: reports finished users.
        width: hypotheses of an item; see `search`.

    Raises:
        UserError: the model returned NaN.
    """
    prompts = ranker.prompts(histories, profiles, None)
    prefix = ranker.prefix(with_candidates=False)
    slate_UK = np.full((len(histories), k), -1, np.int32)
    catalog = build(ranker.items, np.arange(len(ranker.items))[None])
    for rows_B in ranker.batches(prompts, advance):
        seen_BY = _seen(histories, rows_B)
        tokens_BT, length_B = ranker.shards.spread(padded(prompts.tokens.take(rows_B)))
        written = search(
            ranker.model, tokens_BT, length_B, catalog, seen_BY, k, width, prefix=prefix
        )
        check_numbers(fetch(written.logp_BK))
        slate_UK[rows_B] = fetch(written.slot_BK)
    return slate_UK


def _seen(histories: Ragged, rows_B: np.ndarray) -> np.ndarray:
    """The histories of some users, padded with -1 to one width for all batches."""
    longest = max(int(histories.lengths_R.max(initial=0)), 1)
    return histories.take(rows_B).last(longest, fill=-1)


def _items_of(slate: Slate, items_BC: np.ndarray) -> np.ndarray:
    """The items in the slots that were written, [B, K]; padded with -1."""
    slot_BK = np.asarray(slate.slot_BK)
    item_BK = np.take_along_axis(items_BC, np.maximum(slot_BK, 0), axis=1)
    return np.where(slot_BK < 0, -1, item_BK)
