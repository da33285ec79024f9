"""Examples that ask for items among candidates: what they hold, and how they are packed."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.moments import MomentMaker, edges_of
from palr_jax.instruct.negatives import Retrieved
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged

SLOTS = 8


def some_proposals(train: Ragged, count: int = 3) -> Retrieved:
    """Eight candidates for the newest moments of each user, the target among most of them."""
    rng = np.random.default_rng(2)
    moments = Ragged.from_rows(
        np.arange(max(len(row) - count, 1), len(row))
        for row in (train[user] for user in range(len(train)))
    )
    rows = []
    for user in range(len(train)):
        for moment in moments[user]:
            target = train[user][moment]
            others = rng.permutation(np.setdiff1d(np.arange(30), train[user]))[: SLOTS - 1]
            others = np.append(others, np.setdiff1d(np.arange(30), [*others, target])[:SLOTS])
            rows.append(rng.permutation([target, *others[: SLOTS - 1]]))
    items_PK = np.array(rows, np.int32)
    items_PK[5] = np.setdiff1d(np.arange(30), items_PK[5])[:SLOTS]  # the retriever missed it
    scores_PK = -np.sort(rng.normal(size=items_PK.shape), axis=1).astype(np.float32)
    return Retrieved(moments, items_PK, scores_PK)


def make_moments(
    train: Ragged,
    tokenizer: Tokenizer,
    items: Ragged,
    config: InstructConfig,
    reads_titles: bool = False,
) -> MomentMaker:
    return MomentMaker(
        train=train,
        profiles=[f"The user is number {user}." for user in range(len(train))],
        writer=PromptWriter(tokenizer, items, config),
        items=items,
        retrieved=some_proposals(train),
        config=config,
        most=3,
        prior_dropout=0.0,
        reads_titles=reads_titles,
        with_text=False,
        seed=0,
    )


@pytest.fixture
def history_config(instruct_config: InstructConfig) -> InstructConfig:
    return replace(instruct_config, prompt="history", moments=3, held_out="time", history=6)


def visible(horizon_T: np.ndarray) -> np.ndarray:
    """Which token sees which, by the rule of attention."""
    index_T = np.arange(len(horizon_T))
    return (index_T[None] <= index_T[:, None]) & (index_T[:, None] <= horizon_T[None])


@pytest.mark.parametrize("reads_titles", [False, True])
def test_the_history_never_sees_what_is_fed_for_a_moment(
    train: Ragged,
    tokenizer: Tokenizer,
    item_tokens: Ragged,
    history_config: InstructConfig,
    reads_titles: bool,
) -> None:
    maker = make_moments(train, tokenizer, item_tokens, history_config, reads_titles)
    for user in maker.usable(np.arange(len(train))):
        example = maker.example(int(user), 0)
        sees_TT = visible(example.horizon_T)
        fed_T = np.zeros(len(example.tokens_T), bool)
        for moment in example.moments:
            fed_T[moment.fed : moment.fed + len(moment.choices.fed_F)] = True
        assert not sees_TT[~fed_T][:, fed_T].any()
        plain = tokenizer.decode(example.tokens_T[~fed_T])
        assert plain == tokenizer.decode(maker.writer.history_prompt(train[user][:-1]).tokens_T)
        for moment in example.moments:
            for offset, depth in enumerate(moment.choices.depth_F):
                token = moment.fed + offset
                seen = np.flatnonzero(sees_TT[token])
                before = np.flatnonzero(~fed_T[: moment.index + 1])
                ancestors = np.setdiff1d(seen, before)
                assert np.isin(before, seen).all()
                assert len(ancestors) == depth
                assert ancestors.min() >= moment.fed
                assert example.position_T[token] == example.position_T[moment.index] + depth


def test_where_few_items_are_unseen_there_are_few_candidates(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, history_config: InstructConfig
) -> None:
    maker = make_moments(train, tokenizer, item_tokens, history_config)
    retrieved = maker.retrieved
    user = len(train) - 1
    target_P = train[user][retrieved.moments[user]]
    short = replace(
        retrieved, items_PK=retrieved.items_PK.copy(), scores_PK=retrieved.scores_PK.copy()
    )
    for number, target in zip((-3, -2, -1), target_P, strict=True):
        row = retrieved.items_PK[number]
        row = np.append(target, row[row != target])
        short.items_PK[number] = np.where(np.arange(SLOTS) < 3, row, -1)
        short.scores_PK[number] = np.where(np.arange(SLOTS) < 3, [3, 2, 1, *[0] * 5], -np.inf)
    maker = replace(maker, retrieved=short)
    example = maker.example(user, 0)
    assert len(example.moments) == 3
    for moment, target in zip(example.moments, target_P, strict=True):
        assert len(moment.item_S) == len(moment.prior_S) == 3
        assert moment.item_S.min() >= 0
        assert moment.item_S[moment.choices.target] == target
        assert np.exp(moment.prior_S).sum() == pytest.approx(1)
        assert moment.prior_S.argmax() == moment.choices.target
    batch = maker.pack([example], Packing(1, 400, 6), np.random.default_rng(0))
    asked = batch["weight_RQ"] > 0
    assert (batch["candidate_RQS"][asked] >= 0).sum(axis=1).tolist() == [3, 3, 3]
    assert np.isfinite(batch["prior_RQS"]).all()


def test_a_moment_that_the_retriever_missed_is_skipped_or_gets_its_target(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, history_config: InstructConfig
) -> None:
    maker = make_moments(train, tokenizer, item_tokens, history_config)
    retrieved = maker.retrieved
    user = int(np.searchsorted(retrieved.moments.offsets_R1, 5, side="right")) - 1
    asked = {m.item_S[m.choices.target] for m in maker.example(user, 0).moments}
    missed = train[user][retrieved.moments.values_N[5]]
    assert missed not in asked
    inserting = replace(maker, config=replace(history_config, missed="insert"))
    moments = inserting.example(user, 0).moments
    assert [m.item_S[m.choices.target] for m in moments] == train[user][-len(moments) :].tolist()
    moment = next(m for m in moments if m.item_S[m.choices.target] == missed)
    assert moment.prior_S[moment.choices.target] == moment.prior_S.min()


def test_a_user_without_a_moment_has_an_example_only_where_the_text_of_a_history_is_learned(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, history_config: InstructConfig
) -> None:
    maker = make_moments(train, tokenizer, item_tokens, history_config)
    user, everyone = 11, np.arange(len(train))
    items_PK = maker.retrieved.items_PK.copy()
    for number in range(*maker.retrieved.moments.offsets_R1[user : user + 2]):
        unseen = np.setdiff1d(np.arange(30), train[user])[:SLOTS]  # none is the target
        items_PK[number] = np.pad(unseen, (0, SLOTS - len(unseen)), constant_values=-1)
    maker = replace(maker, retrieved=replace(maker.retrieved, items_PK=items_PK))
    assert user not in maker.usable(everyone)
    learning_text = replace(maker, with_text=True)
    assert user in learning_text.usable(everyone)
    assert learning_text.example(user, 0).moments == ()
    listing = replace(learning_text, config=replace(history_config, prompt="candidates"))
    usable = listing.usable(everyone)
    assert user not in usable
    assert [len(listing.example(int(one), 0).moments) for one in usable] == [1] * len(usable)


def test_priors_are_the_retrievers_and_say_nothing_where_they_are_dropped(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, history_config: InstructConfig
) -> None:
    maker = make_moments(train, tokenizer, item_tokens, history_config)
    for moment in maker.example(11, 0).moments:
        np.testing.assert_allclose(np.exp(moment.prior_S).sum(), 1, rtol=1e-5)
    dropping = replace(maker, prior_dropout=0.5)
    said = [m.prior_S.any() for epoch in range(40) for m in dropping.example(11, epoch).moments]
    assert 0.3 < np.mean(said) < 0.7


def test_each_epoch_shows_consecutive_moments_of_a_user_who_has_many(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, history_config: InstructConfig
) -> None:
    whole = make_moments(train, tokenizer, item_tokens, history_config)
    maker = replace(whole, most=2)
    user = next(user for user in range(11, len(train)) if len(whole.example(user, 0).moments) == 3)

    def targets(maker: MomentMaker, epoch: int) -> tuple[int, ...]:
        moments = maker.example(user, epoch).moments
        return tuple(int(moment.item_S[moment.choices.target]) for moment in moments)

    first, second, third = targets(whole, 0)
    shown = {targets(maker, epoch) for epoch in range(20)}
    assert shown == {(first, second), (second, third)}
    assert {targets(whole, epoch) for epoch in range(20)} == {(first, second, third)}
    # The history goes on to the newest moment shown, and no further.
    for epoch in range(5):
        *_, last = maker.example(user, epoch).moments
        target = int(last.item_S[last.choices.target])
        before = train[user][: train[user].tolist().index(target)]
        np.testing.assert_array_equal(last.history_H, before[-history_config.history :])


@pytest.mark.parametrize("form", ["history", "candidates"])
def test_examples_and_rows_depend_on_user_seed_and_epoch_alone(
    train: Ragged,
    tokenizer: Tokenizer,
    item_tokens: Ragged,
    history_config: InstructConfig,
    form: Literal["history", "candidates"],
) -> None:
    config = replace(history_config, prompt=form)
    maker = make_moments(train, tokenizer, item_tokens, config)
    users = maker.usable(np.arange(len(train)))
    examples = [maker.example(int(user), 3) for user in users]
    again = [maker.example(int(user), 3) for user in reversed(users)][::-1]
    rows, same = (
        maker.pack(made, Packing(2, 400, 12), np.random.default_rng(0))
        for made in (examples, again)
    )
    for name, array in rows.items():
        np.testing.assert_array_equal(array, same[name])
    assert rows["weight_RQ"].sum() == sum(len(example.moments) for example in examples)
    assert rows["edge_token_RQE"].shape[2] == edges_of(SLOTS)


def test_the_list_of_candidates_is_shuffled_or_in_the_retrievers_order(
    train: Ragged, tokenizer: Tokenizer, item_tokens: Ragged, history_config: InstructConfig
) -> None:
    config = replace(history_config, prompt="candidates", candidate_order="retriever")
    maker = make_moments(train, tokenizer, item_tokens, config)
    offsets_U1 = maker.retrieved.moments.offsets_R1

    def listed(maker: MomentMaker) -> list[list[int]]:
        example = maker.example(11, 0)
        marked = example.item_T[example.item_T >= 0]
        return [marked[-SLOTS:].tolist()]

    proposed = maker.retrieved.items_PK[offsets_U1[11] : offsets_U1[12]].tolist()
    assert listed(maker)[0] in proposed
    shuffled = replace(maker, config=replace(config, candidate_order="shuffled"))
    assert listed(shuffled)[0] not in proposed
    assert sorted(listed(shuffled)[0]) in [sorted(row) for row in proposed]
