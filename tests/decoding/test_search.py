import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.decoding import search as search_module
from palr_jax.decoding.generate import Slate, generate
from palr_jax.decoding.search import search
from palr_jax.decoding.trie import build
from palr_jax.llm.llama import Llama
from palr_jax.ragged import Ragged
from tests.decoding.slow import (
    END,
    Logits,
    SlowSlate,
    item_texts,
    of_one_size,
    prompts_of,
    slow_beam_slate,
    slow_generate,
)
from tests.programs import programs

K = 3


def check(slate: Slate, slow: list[SlowSlate]) -> None:
    for row, expected in enumerate(slow):
        count = len(expected.slots)
        assert slate.slot_BK[row].tolist() == expected.slots + [-1] * (K - count)
        np.testing.assert_allclose(slate.logp_BK[row, :count], expected.logps, atol=1e-4)
        assert (slate.logp_BK[row, count:] == -np.inf).all()


@pytest.mark.parametrize("width", [1, 3])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(texts=item_texts(most=12, longest=12), seed=st.integers(0, 1000))
def test_slates_equal_a_beam_over_full_forward_passes(
    tiny: Llama, tiny_logits: Logits, width: int, texts: list[list[int]], seed: int
) -> None:
    prompts, lengths = prompts_of(seed, 3)
    rng = np.random.default_rng(seed)
    slots = np.full(12, -1)
    slots[rng.permutation(12)[: len(texts)]] = np.arange(len(texts))
    # Some rows list a slot twice, or an empty one.
    excluded = rng.integers(-1, 12, (3, 4))
    trie = of_one_size(build(Ragged.from_rows(texts), slots[None]))
    candidates = {slot: texts[item] for slot, item in enumerate(slots) if item >= 0}
    slow = []
    for row in range(3):
        allowed = set(candidates) - set(excluded[row].tolist())
        prompt = prompts[row, : lengths[row]].tolist()
        arguments = (tiny_logits, prompt, candidates, allowed)
        slow.append(slow_beam_slate(*arguments, width, K))
        if width == 1:
            assert slow[-1].slots == slow_generate(*arguments, K).slots
    check(search(tiny, prompts, lengths, trie, excluded, K, width), slow)


def catalog(seed: int, count: int) -> Ragged:
    """Items with the same first token, as quoted titles have."""
    rng = np.random.default_rng(seed)
    texts = {tuple(rng.integers(2, 8, rng.integers(3, 8)).tolist()) for _ in range(count)}
    return Ragged.from_rows([[9, *text, END] for text in sorted(texts)])


def test_a_catalog_gives_the_slates_that_its_candidates_give(tiny: Llama) -> None:
    """Both decoders are greedy in the same trie over the same items."""
    items = catalog(0, 60)
    prompts, lengths = prompts_of(1, 4)
    every = np.arange(len(items))[None]
    from_catalog = search(
        tiny, prompts, lengths, build(items, every), np.full((4, 1), -1), K, width=1
    )
    allowed = np.ones((4, len(items)), bool)
    from_candidates = generate(
        tiny, prompts, lengths, build(items, np.repeat(every, 4, axis=0)), allowed, K
    )
    assert (from_catalog.slot_BK == from_candidates.slot_BK).all()
    np.testing.assert_allclose(from_catalog.logp_BK, from_candidates.logp_BK, atol=1e-4)
    assert from_candidates.passes < from_catalog.passes


@pytest.mark.parametrize("width", [1, 3])
def test_distinct_items_even_from_a_broken_model(tiny: Llama, width: int) -> None:
    """NaN shows in the log-probabilities and breaks no constraint."""
    broken = jax.tree.map(lambda leaf: leaf * np.nan, tiny)
    items = catalog(2, 40)
    excluded = np.arange(0, len(items), 2)
    slate = search(
        broken, *prompts_of(0, 3), build(items, np.arange(len(items))[None]),
        np.tile(excluded, (3, 1)), K, width,
    )  # fmt: skip
    assert np.isnan(slate.logp_BK[:, 0]).all()
    for slots in np.asarray(slate.slot_BK):
        assert len(set(slots)) == K
        assert not set(slots) & set(excluded)


def test_a_user_who_has_seen_all_gets_nothing(tiny: Llama) -> None:
    items = catalog(3, 8)
    excluded = np.stack([np.arange(len(items)), np.full(len(items), -1)])
    trie = build(items, np.arange(len(items))[None])
    slate = search(tiny, *prompts_of(0, 2), trie, excluded, K)
    assert (slate.slot_BK[0] == -1).all()
    assert (slate.slot_BK[1] >= 0).all()


def test_batches_of_a_size_share_a_program(tiny: Llama) -> None:
    items = catalog(4, 80)
    trie = build(items, np.arange(len(items))[None])
    sizes = []
    for seed in range(3):
        excluded = np.random.default_rng(seed).integers(-1, len(items), (2, 5))
        search(tiny, *prompts_of(seed, 2), trie, excluded, K)
        sizes.append(programs(search_module._search))
    assert sizes[0] == sizes[1] == sizes[2]


def test_several_tries_are_refused(tiny: Llama) -> None:
    items = catalog(5, 20)
    excluded = np.full((2, 1), -1)
    with pytest.raises(ValueError, match="2 tries for a catalog"):
        search(tiny, *prompts_of(0, 2), build(items, np.array([[0], [1]])), excluded, 1)
