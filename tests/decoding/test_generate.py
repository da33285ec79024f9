from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.decoding import generate as generate_module
from palr_jax.decoding.generate import Slate, generate
from palr_jax.decoding.score import plan_score, score
from palr_jax.decoding.trie import Trie, build
from palr_jax.llm.llama import Llama
from palr_jax.ragged import Ragged
from tests.decoding.slow import END, Logits, item_texts, slot_rows, slow_generate

K = 4


def of_one_size(trie: Trie, max_children: int = 8) -> Trie:
    """The same tries with wider arrays and larger bounds: most tests share a compiled program."""

    def pad(field_RN: np.ndarray) -> np.ndarray:
        return np.pad(field_RN, ((0, 0), (0, 128 - field_RN.shape[1])))

    return replace(
        jax.tree.map(pad, replace(trie, slot_RS=np.zeros((1, 0), int))),
        slot_RS=trie.slot_RS,
        max_children=max_children,
        max_depth=24,
        root_run=16,
    )


def prompts_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(2, 61, (rows, 16)), rng.integers(1, 17, rows)


def check(
    slate: Slate, logits: Logits, prompts: np.ndarray, lengths: np.ndarray, texts: list,
    slots: np.ndarray, allowed: np.ndarray,
) -> int:  # fmt: skip
    """Compares with the slow slates; returns the most decisions of a row."""
    decisions = []
    for row in range(len(prompts)):
        row_slots = slots[row if len(slots) > 1 else 0]
        candidates = {s: texts[item] for s, item in enumerate(row_slots) if item >= 0}
        free = set(np.flatnonzero(allowed[row]).tolist())
        prompt = prompts[row, : lengths[row]].tolist()
        slow = slow_generate(logits, prompt, candidates, free, K)
        count = len(slow.slots)
        assert count == min(K, len(free & set(candidates)))
        assert slate.slot_BK[row].tolist() == slow.slots + [-1] * (K - count)
        np.testing.assert_allclose(slate.logp_BK[row, :count], slow.logps, atol=1e-4)
        assert (slate.logp_BK[row, count:] == -np.inf).all()
        decisions.append(slow.decisions)
    return max(decisions)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data(), st.integers(0, 1000))
def test_slates_equal_token_by_token_decoding(
    tiny: Llama, tiny_logits: Logits, data: st.DataObject, seed: int
) -> None:
    texts = data.draw(item_texts(most=9, longest=12))
    slots = data.draw(slot_rows(rows=3, slots=12, items=len(texts)))
    allowed = np.random.default_rng(seed).random((3, 12)) < 0.8
    prompts, lengths = prompts_of(seed, 3)
    trie = of_one_size(build(Ragged.from_rows(texts), slots))
    slate = generate(tiny, prompts, lengths, trie, allowed, K)
    decisions = check(slate, tiny_logits, prompts, lengths, texts, slots, allowed)
    # The first decision needs no pass of its own, and a forced token none at all.
    assert slate.iterations == max(decisions - 1, 0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.data(), st.integers(0, 1000))
def test_slates_of_a_shared_trie(
    tiny: Llama, tiny_logits: Logits, data: st.DataObject, seed: int
) -> None:
    texts = data.draw(item_texts(most=12, longest=12))
    slots = np.full((1, 12), -1)
    slots[0, : len(texts)] = np.random.default_rng(seed).permutation(len(texts))
    allowed = np.random.default_rng(seed).random((3, 12)) < 0.5
    prompts, lengths = prompts_of(seed, 3)
    # 3 rows of 32 children are more than the vocabulary: this takes the way over all logits.
    trie = of_one_size(build(Ragged.from_rows(texts), slots), max_children=32)
    slate = generate(tiny, prompts, lengths, trie, allowed, K)
    decisions = check(slate, tiny_logits, prompts, lengths, texts, slots, allowed)
    assert slate.iterations == max(decisions - 1, 0)


@pytest.mark.parametrize("prefix", [0, 3, 11])
def test_runs_longer_than_a_chunk_take_more_passes(
    tiny: Llama, tiny_logits: Logits, monkeypatch: pytest.MonkeyPatch, prefix: int
) -> None:
    monkeypatch.setattr(generate_module, "_TOKENS_PER_PASS", 1)
    rng = np.random.default_rng(7)
    texts = [
        [5] * prefix + [first, *rng.integers(2, 61, tail).tolist(), END]
        for first, tail in [(7, 1), (8, 9), (9, 0), (10, 8), (11, 11), (12, 6)]
    ]
    slots = np.array([rng.permutation([*range(6), *[-1] * 6]) for _ in range(3)])
    prompts, lengths = prompts_of(0, 3)
    allowed = np.ones((3, 12), bool)
    trie = of_one_size(build(Ragged.from_rows(texts), slots))
    slate = generate(tiny, prompts, lengths, trie, allowed, K)
    decisions = check(slate, tiny_logits, prompts, lengths, texts, slots, allowed)
    assert slate.iterations > decisions - 1


def catalog(rng: np.random.Generator, count: int) -> Ragged:
    texts = {tuple(rng.integers(2, 8, rng.integers(3, 8)).tolist()) for _ in range(count)}
    return Ragged.from_rows([[*text, END] for text in sorted(texts)])


def test_the_first_item_has_the_probability_that_score_gives_it(tiny: Llama) -> None:
    rng = np.random.default_rng(8)
    items = catalog(rng, 100)
    trie = build(items, np.array([rng.permutation(len(items))[:12] for _ in range(3)]))
    prompts, lengths = prompts_of(9, 3)
    allowed = np.ones((3, 12), bool)
    slate = generate(tiny, prompts, lengths, of_one_size(trie), allowed, K)
    logp = np.asarray(score(tiny, prompts, lengths, plan_score(trie)))
    first = logp[np.arange(3), slate.slot_BK[:, 0]]
    np.testing.assert_allclose(slate.logp_BK[:, 0], first, atol=1e-4)


def test_rows_of_padding_cost_nothing(tiny: Llama) -> None:
    items = catalog(np.random.default_rng(10), 20)
    trie = of_one_size(build(items, np.array([np.arange(12), np.full(12, -1), np.arange(12)])))
    prompts, _ = prompts_of(11, 3)
    allowed = np.array([[False] * 12, [True] * 12, [False] * 12])
    slate = generate(tiny, prompts, np.array([16, 0, 0]), trie, allowed, K)
    assert (slate.slot_BK == -1).all()
    assert slate.iterations == 0


def test_batches_of_a_size_share_a_program(tiny: Llama) -> None:
    rng = np.random.default_rng(12)
    items = catalog(rng, 200)
    trie = build(items, np.array([rng.permutation(len(items))[:20] for _ in range(6)]))
    sizes = []
    for start in range(0, 6, 2):
        batch = jax.tree.map(lambda field, start=start: field[start : start + 2], trie)
        generate(tiny, *prompts_of(start, 2), batch, rng.random((2, 20)) < 0.9, 3)
        sizes.append(generate_module._generate._cache_size())
    assert sizes[0] == sizes[1] == sizes[2]


def test_as_many_tries_as_prompts(tiny: Llama) -> None:
    trie = build(catalog(np.random.default_rng(13), 20), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="2 tries for 3 prompts"):
        generate(tiny, *prompts_of(0, 3), trie, np.ones((3, 1), bool), 1)
