"""Sharing a prefix does not change rankings."""

from collections.abc import Callable

import numpy as np
import pytest

from palr_jax.decoding.generate import generate
from palr_jax.decoding.score import score
from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.search import search
from palr_jax.decoding.trie import Array, build
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import NO_PREFIX, Prefix
from palr_jax.ragged import Ragged

ROWS, SHARED, K = 4, 6, 3
Prompts = tuple[np.ndarray, np.ndarray]
Found = tuple[Array, Array]  # slots in their order, and log-probabilities


def scores(
    model: Llama,
    prompts: Prompts,
    items: Ragged,
    slots: np.ndarray,
    prefix: Prefix,
) -> Found:
    logp = np.asarray(score(model, *prompts, plan_score(build(items, slots)), prefix=prefix))
    return np.argsort(-logp), logp


def writes(
    model: Llama,
    prompts: Prompts,
    items: Ragged,
    slots: np.ndarray,
    prefix: Prefix,
) -> Found:
    allowed = np.ones(slots.shape, bool)
    slate = generate(model, *prompts, build(items, slots), allowed, K, prefix=prefix)
    return slate.slot_BK, slate.logp_BK


def searches(
    model: Llama,
    prompts: Prompts,
    items: Ragged,
    slots: np.ndarray,
    prefix: Prefix,
) -> Found:
    excluded = np.full((ROWS, 1), -1)
    slate = search(model, *prompts, build(items, slots[:1]), excluded, K, 2, prefix=prefix)
    return slate.slot_BK, slate.logp_BK


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("work", [scores, writes, searches])
def test_a_shared_prefix_changes_no_slate(
    tiny: Llama,
    work: Callable[[Llama, Prompts, Ragged, np.ndarray, Prefix], Found],
    groups: int,
) -> None:
    rng = np.random.default_rng(groups)
    texts = {tuple(rng.integers(2, 6, rng.integers(2, 7)).tolist()) for _ in range(40)}
    items = Ragged.from_rows([[*text, 1] for text in sorted(texts)])
    slots = np.array([rng.permutation(len(items))[:12] for _ in range(ROWS)])
    tokens = rng.integers(2, 61, (ROWS, 16))
    tokens[:, :SHARED] = tokens[0, :SHARED]
    prompts = tokens, np.array([SHARED, 16, 9, 12])  # one is the prefix alone
    plain_slots, plain_logp = work(tiny, prompts, items, slots, NO_PREFIX)
    shared_slots, shared_logp = work(tiny, prompts, items, slots, Prefix(SHARED, groups))
    np.testing.assert_array_equal(shared_slots, plain_slots)
    np.testing.assert_allclose(shared_logp, plain_logp, atol=1e-4)
    # A prefix that the rows do not share would change the result.
    _, wrong_logp = work(tiny, prompts, items, slots, Prefix(SHARED + 3, groups))
    assert np.abs(np.asarray(wrong_logp) - np.asarray(plain_logp)).max() > 1e-2
