import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.decoding import score as score_module
from palr_jax.decoding.score import score
from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.trie import build
from palr_jax.llm.llama import Llama
from palr_jax.ragged import Ragged
from tests.decoding.slow import Logits, item_texts, slot_rows, slow_score
from tests.programs import programs


def some_prompts(seed: int, rows: int, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(2, 61, (rows, width)), rng.integers(1, width + 1, rows)


def random_items(rng: np.random.Generator, count: int) -> Ragged:
    texts = {tuple(rng.integers(2, 8, rng.integers(1, 8)).tolist()) for _ in range(count)}
    return Ragged.from_rows([[*text, 1] for text in sorted(texts)])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data(), st.integers(0, 1000))
def test_scores_equal_one_candidate_at_a_time(
    tiny: Llama, tiny_logits: Logits, data: st.DataObject, seed: int
) -> None:
    texts = data.draw(item_texts(most=7, longest=9))
    slots = data.draw(slot_rows(rows=3, slots=6, items=len(texts)))
    prompts, lengths = some_prompts(seed, 3)
    plan = plan_score(build(Ragged.from_rows(texts), slots))
    logp = np.asarray(score(tiny, prompts, lengths, plan))
    for row in range(3):
        candidates = {s: texts[item] for s, item in enumerate(slots[row]) if item >= 0}
        expected = slow_score(tiny_logits, prompts[row, : lengths[row]].tolist(), candidates)
        for slot in range(6):
            if slot in expected:
                np.testing.assert_allclose(logp[row, slot], expected[slot], atol=1e-4)
            else:
                assert logp[row, slot] == -np.inf
        if candidates:
            np.testing.assert_allclose(np.exp(logp[row]).sum(), 1.0, atol=1e-5)


def test_scores_of_tries_with_many_fed_nodes(tiny: Llama, tiny_logits: Logits) -> None:
    # Three letters and twenty texts: most fed nodes have fed siblings, which they must not see.
    rng = np.random.default_rng(6)
    texts = {tuple(rng.integers(2, 5, rng.integers(3, 8)).tolist()) for _ in range(60)}
    items = Ragged.from_rows([[*text, 1] for text in sorted(texts)])
    slots = np.array([rng.permutation(len(items))[:20] for _ in range(2)])
    prompts, lengths = some_prompts(7, 2)
    plan = plan_score(build(items, slots))
    assert ((plan.depth_BM > 0).sum(1) > 10).all()
    logp = np.asarray(score(tiny, prompts, lengths, plan))
    for row in range(2):
        candidates = {slot: items[item].tolist() for slot, item in enumerate(slots[row])}
        expected = slow_score(tiny_logits, prompts[row, : lengths[row]].tolist(), candidates)
        np.testing.assert_allclose(logp[row], [expected[slot] for slot in range(20)], atol=1e-4)


def test_only_branching_nodes_and_their_ancestors_are_fed() -> None:
    # 2 3 branches into 4 and 5, and 5 6 7 into 8 and 9; the long tails and text 2 are forced.
    texts = [
        [2, 3, 4, 9, 9, 9, 1], [2, 3, 5, 6, 7, 8, 9, 9, 1], [3, 9, 9, 9, 9, 9, 1],
        [2, 3, 5, 6, 7, 9, 9, 9, 1],
    ]  # fmt: skip
    plan = plan_score(
        build(Ragged.from_rows(texts), np.array([[3, -1, 2, 1, 0], [2, -1, -1, -1, -1]]))
    )
    fed = plan.depth_BM > 0
    assert plan.token_BM[0][fed[0]].tolist() == [2, 3, 5, 6, 7]
    assert not fed[1].any()
    edges = plan.edge_source_BE >= 0
    assert edges.sum(1).tolist() == [6, 0]
    assert plan.edge_source_BE[0][edges[0]].tolist().count(0) == 2


def test_probabilities_differ_between_candidates(tiny: Llama) -> None:
    items = random_items(np.random.default_rng(3), 40)
    plan = plan_score(build(items, np.arange(20)[None]))
    logp = np.asarray(score(tiny, *some_prompts(0, 1), plan))
    assert logp.max() - logp.min() > 1.0


def test_a_row_of_padding_is_all_minus_infinity(tiny: Llama) -> None:
    items = random_items(np.random.default_rng(4), 40)
    slots = np.array([np.arange(10), np.full(10, -1)])
    prompts, lengths = some_prompts(1, 2)
    logp = score(tiny, prompts, np.array([lengths[0], 0]), plan_score(build(items, slots)))
    assert np.isfinite(logp[0]).all()
    assert (logp[1] == -jnp.inf).all()


def test_batches_of_a_size_share_a_program(tiny: Llama) -> None:
    rng = np.random.default_rng(5)
    items = random_items(rng, 80)
    sizes = []
    for seed in range(3):
        slots = rng.permutation(len(items))[:40].reshape(2, 20)
        score(tiny, *some_prompts(seed, 2), plan_score(build(items, slots)))
        sizes.append(programs(score_module.score_step))
    assert sizes[0] == sizes[1] == sizes[2]
