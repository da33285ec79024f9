from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.decoding import generate as generate_module
from palr_jax.decoding.generate import Slate, generate
from palr_jax.decoding.score import score
from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.trie import build
from palr_jax.llm.axes import shardings
from palr_jax.llm.compute import compute_over
from palr_jax.llm.llama import Llama
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from tests.decoding.conftest import CONFIG
from tests.decoding.slow import (
    END,
    Logits,
    SlowSlate,
    item_texts,
    of_one_size,
    prompts_of,
    slot_rows,
    slow_generate,
    slow_items,
    slow_score,
)
from tests.programs import programs

K = 4


def check(slate: Slate, slow: list[SlowSlate]) -> None:
    for row, expected in enumerate(slow):
        count = len(expected.slots)
        assert slate.slot_BK[row].tolist() == expected.slots + [-1] * (K - count)
        np.testing.assert_allclose(slate.logp_BK[row, :count], expected.logps, atol=1e-4)
        assert (slate.logp_BK[row, count:] == -np.inf).all()
    assert slate.passes == max(1, *(len(expected.slots) for expected in slow))


@pytest.mark.parametrize("mode", ["greedy", "beam"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_slates_equal_token_by_token_decoding(
    tiny: Llama, tiny_logits: Logits, mode: Any, data: st.DataObject, seed: int
) -> None:
    texts = data.draw(item_texts(most=9, longest=12))
    slots = data.draw(slot_rows(rows=3, slots=12, items=len(texts)))
    allowed = np.random.default_rng(seed).random((3, 12)) < 0.8
    prompts, lengths = prompts_of(seed, 3)
    trie = of_one_size(build(Ragged.from_rows(texts), slots))
    slow = []
    for row in range(3):
        candidates = {s: texts[item] for s, item in enumerate(slots[row]) if item >= 0}
        free = set(np.flatnonzero(allowed[row]).tolist())
        reference = slow_generate if mode == "greedy" else slow_items
        prompt = prompts[row, : lengths[row]].tolist()
        slow.append(reference(tiny_logits, prompt, candidates, free, K))
    check(generate(tiny, prompts, lengths, trie, allowed, K, mode), slow)


def catalog(rng: np.random.Generator, count: int) -> Ragged:
    texts = {tuple(rng.integers(2, 8, rng.integers(3, 8)).tolist()) for _ in range(count)}
    return Ragged.from_rows([[*text, END] for text in sorted(texts)])


def test_the_first_item_of_a_beam_over_items_is_the_best_of_score(tiny: Llama) -> None:
    rng = np.random.default_rng(8)
    items = catalog(rng, 200)
    trie = build(items, np.array([rng.permutation(len(items))[:12] for _ in range(64)]))
    prompts, lengths = prompts_of(9, 64)
    logp = np.asarray(score(tiny, prompts, lengths, plan_score(trie)))
    greedy, beam = (
        generate(tiny, prompts, lengths, of_one_size(trie), np.ones((64, 12), bool), K, mode)
        for mode in ("greedy", "beam")
    )
    for slate in (greedy, beam):
        first = logp[np.arange(64), slate.slot_BK[:, 0]]
        np.testing.assert_allclose(slate.logp_BK[:, 0], first, atol=1e-4)
    assert (beam.slot_BK[:, 0] == logp.argmax(1)).all()
    # Otherwise this would not distinguish the two modes.
    assert (greedy.slot_BK[:, 0] != logp.argmax(1)).any()


def test_samples_are_drawn_token_by_token_at_a_temperature(
    tiny: Llama, tiny_logits: Logits
) -> None:
    texts = [[5, 6, END], [5, 7, END], [8, END], [5, 7, 9, END]]
    rows, temperature = 512, 2.0
    prompt = [3, 9, 4]
    prompts, lengths = np.tile(prompt, (rows, 1)), np.full(rows, 3)
    trie = build(Ragged.from_rows(texts), np.tile(np.arange(4), (rows, 1)))
    keys = jax.random.split(jax.random.key(0), rows)
    allowed = np.ones((rows, 4), bool)
    slate = generate(tiny, prompts, lengths, trie, allowed, 2, "sample", temperature, keys)
    again = generate(tiny, prompts, lengths, trie, allowed, 2, "sample", temperature, keys)
    assert (slate.slot_BK == again.slot_BK).all()
    assert (slate.slot_BK[:, 0] != slate.slot_BK[:, 1]).all()
    candidates = dict(enumerate(texts))
    tempered = slow_score(lambda row: tiny_logits(row) / temperature, prompt, candidates)
    expected = np.exp([tempered[slot] for slot in range(4)])
    share = np.bincount(np.asarray(slate.slot_BK[:, 0]), minlength=4) / rows
    # Four standard deviations.
    assert (np.abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / rows)).all()
    plain = slow_score(tiny_logits, prompt, candidates)
    first = [plain[slot] for slot in np.asarray(slate.slot_BK[:, 0]).tolist()]
    np.testing.assert_allclose(slate.logp_BK[:, 0], first, atol=1e-4)


def test_a_row_is_drawn_the_same_in_any_batch(tiny: Llama) -> None:
    rng = np.random.default_rng(14)
    items = catalog(rng, 60)
    slots = np.array([rng.permutation(len(items))[:12] for _ in range(3)])
    prompts, lengths = prompts_of(15, 3)
    keys = jax.random.split(jax.random.key(1), 3)
    slates = []
    for order in (np.array([0, 1, 2]), np.array([2, 0, 1])):
        trie = of_one_size(build(items, slots[order]))
        allowed = np.ones((3, 12), bool)
        slate = generate(
            tiny, prompts[order], lengths[order], trie, allowed, K, "sample", 1.0, keys[order]
        )
        slates.append(np.asarray(slate.slot_BK)[np.argsort(order)])
    assert (slates[0] == slates[1]).all()


def test_rows_of_padding_write_nothing(tiny: Llama) -> None:
    items = catalog(np.random.default_rng(10), 20)
    trie = of_one_size(build(items, np.array([np.arange(12), np.full(12, -1), np.arange(12)])))
    prompts, _ = prompts_of(11, 3)
    allowed = np.array([[False] * 12, [True] * 12, [False] * 12])
    slate = generate(tiny, prompts, np.array([16, 0, 0]), trie, allowed, K)
    assert (slate.slot_BK == -1).all()
    assert slate.passes == 1


def test_distinct_items_even_from_a_broken_model(tiny: Llama) -> None:
    """NaN shows in the log-probabilities and breaks no constraint."""
    graph, weights = jax.tree.map(lambda leaf: leaf * np.nan, tiny), None
    del weights
    items = catalog(np.random.default_rng(16), 20)
    trie = of_one_size(build(items, np.array([np.arange(12)] * 3)))
    allowed = np.arange(12) % 2 == 0
    slate = generate(graph, *prompts_of(0, 3), trie, np.array([allowed] * 3), K)
    assert np.isnan(slate.logp_BK[:, 0]).all()
    for slots in np.asarray(slate.slot_BK):
        assert len(set(slots)) == K
        assert allowed[slots].all()


def test_batches_of_a_size_share_a_program(tiny: Llama) -> None:
    rng = np.random.default_rng(12)
    items = catalog(rng, 200)
    trie = build(items, np.array([rng.permutation(len(items))[:20] for _ in range(6)]))
    sizes = []
    for start in range(0, 6, 2):
        batch = jax.tree.map(lambda field, start=start: field[start : start + 2], trie)
        generate(tiny, *prompts_of(start, 2), batch, rng.random((2, 20)) < 0.9, 3)
        sizes.append(programs(generate_module._generate))
    assert sizes[0] == sizes[1] == sizes[2]


def test_as_many_tries_as_prompts_and_keys_for_samples(tiny: Llama) -> None:
    trie = build(catalog(np.random.default_rng(13), 20), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="2 tries for 3 prompts"):
        generate(tiny, *prompts_of(0, 3), trie, np.ones((3, 1), bool), 1)
    with pytest.raises(ValueError, match="needs a key for each row"):
        generate(tiny, *prompts_of(0, 2), trie, np.ones((2, 1), bool), 1, "sample")


def test_a_divided_model_writes_the_same() -> None:
    """Rows over data, heads over tensor, weights over fsdp."""
    config = replace(CONFIG, vocab_size=64)
    whole = Llama(config, nnx.Rngs(params=1))
    rng = np.random.default_rng(17)
    items = catalog(rng, 60)
    trie = build(items, np.array([rng.permutation(len(items))[:12] for _ in range(4)]))
    prompts, lengths = prompts_of(18, 4)
    allowed = np.ones((4, 12), bool)
    shards = Shards(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    divided = Llama(config, nnx.Rngs(params=1), compute=compute_over(shards))
    params = nnx.state(divided)
    nnx.update(divided, jax.device_put(params, shardings(shards, params)))
    rows: tuple[np.ndarray, np.ndarray] = shards.spread((prompts, lengths.astype(np.int32)))
    alone, spread = (
        generate(model, *inputs, trie, allowed, K)
        for model, inputs in [(whole, (prompts, lengths)), (divided, rows)]
    )
    assert (alone.slot_BK == spread.slot_BK).all()
    np.testing.assert_allclose(alone.logp_BK, spread.logp_BK, atol=1e-4)


def test_the_loop_never_asks_the_host(tiny: Llama) -> None:
    items = catalog(np.random.default_rng(19), 40)
    trie = build(items, np.array([np.arange(12)] * 2))
    traced: list[str | None] = []
    step = generate_module._generate

    def compiled(*arguments: Any) -> Slate:
        traced.append(step.lower(*arguments).compile().as_text())
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "_generate", compiled)
        generate(tiny, *prompts_of(20, 2), trie, np.ones((2, 12), bool), K)
    (program,) = traced
    assert program is not None
    assert " while(" in program
    for word in ("infeed", "outfeed", "callback", " send(", " recv("):
        assert word not in program
