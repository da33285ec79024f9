"""The ranking loss is -log of the probability that ranking computes."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.decoding.candidate_head import CandidateHead, Known, RankingLlama, head_of
from palr_jax.decoding.score import score
from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.trie import build
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.moments import MomentExample, MomentMaker
from palr_jax.instruct.packing import Packing
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.padding import to_multiple
from palr_jax.ragged import Ragged
from palr_jax.training.candidates import MomentBatch, candidate_loss
from palr_jax.trees import State, split_off
from tests.instruct.test_moments import make_moments
from tests.programs import compiled, forward

PACKING = Packing(2, 1000, 12)


def new_model(vocab_size: int, prior: bool, vectors: bool, titles: bool) -> Llama:
    """A model whose head has no zero parameters, like a trained one."""
    shape = LlamaConfig(
        vocab_size=vocab_size, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        ffn_dim=24, max_length=1000,
    )  # fmt: skip
    llama = Llama(shape, nnx.Rngs(params=0))
    if not (prior or vectors or titles):
        return llama
    rng = np.random.default_rng(3)
    kinds = [rng.normal(size=(30, width)) for width in (6, 4)] if vectors else []
    model = RankingLlama(llama, CandidateHead(16, kinds, prior, titles))
    state = jax.tree.map(
        lambda leaf: np.asarray(leaf + rng.normal(size=leaf.shape), leaf.dtype),
        jax.device_get(nnx.state(model.candidate_head)),
    )
    nnx.update(model.candidate_head, jax.tree.map(jnp.asarray, state))
    return model


def as_batch(maker: MomentMaker, examples: list[MomentExample]) -> MomentBatch:
    rows = maker.pack(examples, PACKING, np.random.default_rng(0))
    return MomentBatch(**{name.replace("_R", "_B"): array for name, array in rows.items()})


def padded(row_T: np.ndarray, fill: int) -> np.ndarray:
    """A prompt as a row of a width that many share, so that few programs serve all lengths."""
    room = to_multiple(len(row_T), 128) - len(row_T)
    return np.pad(row_T, (0, room), constant_values=fill)[None]


def ranked_logps(
    model: Llama, maker: MomentMaker, example: MomentExample, whole: bool
) -> list[float]:
    """log P(target) of every moment by ranking, each with its own prompt."""
    fed_T = np.zeros(len(example.tokens_T), bool)
    for moment in example.moments:
        fed_T[moment.fed : moment.fed + len(moment.choices.fed_F)] = True
    found = []
    for moment in example.moments:
        before_T = np.flatnonzero(~fed_T[: moment.index + 1])
        plan = plan_score(build(maker.items, moment.item_S[None]), whole=whole)
        history_H = np.full(8, -1)
        history_H[8 - len(moment.history_H) :] = moment.history_H
        known = Known(
            padded(example.item_T[before_T], -1),
            moment.item_S[None],
            history_H[None],
            moment.prior_S[None],
        )
        tokens_1T = padded(example.tokens_T[before_T], 0)
        logp_BS = score(model, tokens_1T, np.array([len(before_T)]), plan, known=known)
        np.testing.assert_allclose(np.exp(logp_BS).sum(), 1, rtol=1e-4)
        found.append(float(logp_BS[0, moment.choices.target]))
    return found


@pytest.mark.parametrize("form", ["history", "candidates"])
@pytest.mark.parametrize(
    ("prior", "vectors", "titles"),
    [(False, False, False), (True, False, False), (True, True, False), (True, False, True)],
)
def test_the_loss_is_that_of_ranking_each_moment_on_its_own(
    train: Ragged,
    tokenizer: Tokenizer,
    item_tokens: Ragged,
    instruct_config: InstructConfig,
    form: Literal["history", "candidates"],
    prior: bool,
    vectors: bool,
    titles: bool,
) -> None:
    config = replace(instruct_config, prompt=form, moments=3, held_out="time", history=6)
    maker = make_moments(train, tokenizer, item_tokens, config, titles)
    model = new_model(tokenizer.vocab_size, prior, vectors, titles)
    examples = [maker.example(user, 0) for user in (5, 8, 11)]
    expected = [
        logp for example in examples for logp in ranked_logps(model, maker, example, titles)
    ]
    loss, metrics = compiled(candidate_loss, model, as_batch(maker, examples))
    assert float(loss) == pytest.approx(-np.mean(expected), rel=1e-4)
    assert int(metrics["label tokens"]) == len(expected)
    assert int(metrics["tokens"]) == sum(len(example.tokens_T) for example in examples)


@pytest.mark.parametrize("order", ["shuffled", "retriever"])
def test_letters_are_learned_by_the_position_in_the_list(
    train: Ragged,
    tokenizer: Tokenizer,
    item_tokens: Ragged,
    instruct_config: InstructConfig,
    order: Literal["shuffled", "retriever"],
) -> None:
    config = replace(
        instruct_config, prompt="candidates", moments=3, held_out="time", history=6,
        candidate_order=order, answer="letter",
    )  # fmt: skip
    maker = make_moments(train, tokenizer, item_tokens, config)
    model = new_model(tokenizer.vocab_size, False, False, False)
    expected, examples = [], []
    for user in (5, 8, 11):
        example = maker.example(user, 0)
        (moment,) = example.moments
        listed_S = example.item_T[example.item_T >= 0][-len(moment.item_S) :]
        target = moment.item_S[moment.choices.target]
        (position,) = np.flatnonzero(listed_S == target)
        plan = plan_score(build(maker.writer.letters, np.arange(len(listed_S))[None]))
        prompt_T = example.tokens_T[: moment.index + 1]
        logp_BS = score(model, padded(prompt_T, 0), np.array([len(prompt_T)]), plan)
        expected.append(float(logp_BS[0, position]))
        examples.append(example)
    loss, _ = compiled(candidate_loss, model, as_batch(maker, examples))
    assert float(loss) == pytest.approx(-np.mean(expected), rel=1e-4)


def test_gradients_equal_finite_differences(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, prompt="history", moments=3, held_out="time", history=4)
    maker = make_moments(train, tokenizer, item_tokens, config, True)
    batch = as_batch(maker, [maker.example(user, 0) for user in (8, 11)])
    model = new_model(tokenizer.vocab_size, True, True, True)
    graph, params, rest = split_off(model, nnx.Param)

    @jax.jit
    def loss(params: State) -> jax.Array:
        return candidate_loss(nnx.merge(graph, params, rest), batch, text_loss=0.1)[0]

    rng = np.random.default_rng(0)
    values = jax.device_get(params)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), values)
    grads = jax.device_get(jax.jit(jax.grad(loss))(params))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), grads, direction)))
    step = 1e-3

    def moved(by: float) -> float:
        return float(loss(jax.tree.map(lambda p, d: np.float32(p + by * d), values, direction)))

    ahead, behind = moved(step), moved(-step)
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=2e-2)


def test_a_silent_text_leaves_the_prior(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, prompt="history", moments=3, held_out="time", history=4)
    maker = make_moments(train, tokenizer, item_tokens, config)
    model = new_model(tokenizer.vocab_size, True, False, False)
    head = head_of(model)
    assert head is not None
    assert head.prior_scale is not None
    assert head.text_scale is not None
    head.text_scale[...] = jnp.float32(0)
    head.prior_scale[...] = jnp.float32(1)
    example = maker.example(11, 0)
    for moment, logp in zip(
        example.moments, ranked_logps(model, maker, example, False), strict=True
    ):
        assert logp == pytest.approx(float(moment.prior_S[moment.choices.target]), abs=1e-5)


def test_the_text_of_a_prompt_is_learned_by_its_own_tokens_alone(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, prompt="history", moments=3, held_out="time", history=6)
    maker = make_moments(train, tokenizer, item_tokens, config)
    model = new_model(tokenizer.vocab_size, True, False, False)
    example = maker.example(11, 0)
    batch = as_batch(maker, [example])
    ranking = float(compiled(candidate_loss, model, batch)[0])
    both, _ = compiled(candidate_loss, model, batch, text_loss=0.5)
    text_T = maker.writer.history_prompt(train[11][:-1]).tokens_T
    logp_TV = jax.nn.log_softmax(forward(model, jnp.asarray(text_T[None]))[0])
    # The head has no item vectors, so it adds zeros.
    nll = -float(logp_TV[np.arange(len(text_T) - 1), text_T[1:]].sum())
    count = len(example.moments) + 0.5 * (len(text_T) - 1)
    expected = (ranking * len(example.moments) + 0.5 * nll) / count
    assert float(both) == pytest.approx(expected, rel=1e-4)


def test_a_head_without_text_looks_at_no_state_of_the_llama(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, prompt="history", moments=3, held_out="time", history=6)
    maker = make_moments(train, tokenizer, item_tokens, config, True)
    model = new_model(tokenizer.vocab_size, True, True, True)
    other = new_model(tokenizer.vocab_size, True, True, True)
    other.embedding_VD[...] = other.embedding_VD[...][::-1]
    example = maker.example(11, 0)
    whole = ranked_logps(model, maker, example, True)
    assert not np.allclose(whole, ranked_logps(other, maker, example, True))
    heads = [(one, head) for one in (model, other) if (head := head_of(one)) is not None]
    silent, also = (
        ranked_logps(RankingLlama(one, head.without_text()), maker, example, True)
        for one, head in heads
    )
    np.testing.assert_allclose(silent, also, rtol=1e-5)
    other.embedding_VD[...] = jnp.full_like(other.embedding_VD[...], jnp.nan)
    damaged = RankingLlama(other, heads[1][1].without_text())
    assert ranked_logps(damaged, maker, example, True) == also
    assert ranked_logps(model, maker, example, True) == whole  # the model itself still speaks
