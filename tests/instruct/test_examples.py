import re
from dataclasses import replace

import numpy as np
import pytest

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.affinity import three_hop
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.examples import ExampleMaker, tuning_users
from palr_jax.instruct.negatives import NegativeSampler, Retrieved, draw_moments
from palr_jax.instruct.packing import Example
from palr_jax.instruct.profiles import category_table
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged


def make_maker(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    config: InstructConfig,
    share: float,
    retrieved: Retrieved | None = None,
) -> ExampleMaker:
    table = category_table(catalog)
    return ExampleMaker(
        train=train,
        profiles=[""] * len(train),
        writer=writer,
        negatives=NegativeSampler.build(
            train, len(catalog), table, config.category_negatives, config.retriever_negatives
        ),
        nearby=three_hop(train, len(catalog), np.arange(len(train)), 10),
        retrieved=retrieved,
        config=config,
        retrieval_share=share,
        seed=3,
    )


def items_of(catalog: Catalog, text: str) -> list[int]:
    return [catalog.index_of(title) for title in re.findall(r'"(.*)"\n', text)]


def read(catalog: Catalog, tokenizer: Tokenizer, example: Example) -> tuple[list[int], ...]:
    history, _, rest = tokenizer.decode(example.prompt_T).partition("The candidate movies are:")
    label = tokenizer.decode(example.label_M)
    return items_of(catalog, history), items_of(catalog, rest), items_of(catalog, label)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_history_and_label_are_neighbouring_windows_of_training_items(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    instruct_config: InstructConfig,
    tokenizer: Tokenizer,
    share: float,
) -> None:
    maker = make_maker(catalog, train, writer, instruct_config, share)
    for user in range(len(train)):
        for epoch in range(5):
            history, candidates, label = read(catalog, tokenizer, maker.example(user, epoch))
            items = train[user].tolist()
            now = items.index(label[0])
            assert history == items[max(0, now - 5) : now]
            assert label == items[now : now + 4]
            if share:
                assert set(label) <= set(candidates)
                assert len(set(candidates)) == len(candidates) <= 12
                # A negative is never an item that the user has.
                assert set(candidates) & set(items) == set(label)
            else:
                assert not candidates


def test_candidates_are_in_no_order(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    instruct_config: InstructConfig,
    tokenizer: Tokenizer,
) -> None:
    maker = make_maker(catalog, train, writer, instruct_config, 1.0)
    places = []
    for epoch in range(200):
        _, candidates, label = read(catalog, tokenizer, maker.example(11, epoch))
        places.append(candidates.index(label[0]) / max(len(candidates) - 1, 1))
    assert 0.4 < np.mean(places) < 0.6


def test_an_example_is_a_function_of_user_epoch_and_seed(
    catalog: Catalog, train: Ragged, writer: PromptWriter, instruct_config: InstructConfig
) -> None:
    first = make_maker(catalog, train, writer, instruct_config, 0.7)
    again = make_maker(catalog, train, writer, instruct_config, 0.7)
    again.example(5, 0)
    for user, epoch in [(9, 4), (10, 0), (9, 5)]:
        one, two = first.example(user, epoch), again.example(user, epoch)
        np.testing.assert_array_equal(one.prompt_T, two.prompt_T)
        np.testing.assert_array_equal(one.label_M, two.label_M)
    assert first.example(11, 0).prompt_T.tolist() != first.example(11, 1).prompt_T.tolist()


def test_tuning_users_are_a_seeded_share() -> None:
    train = Ragged.from_rows([[0, 1]] * 90 + [[0]] * 10)
    users = tuning_users(train, 0.2, seed=1)
    assert len(np.unique(users)) == 20
    assert users.max() < 90
    np.testing.assert_array_equal(users, tuning_users(train, 0.2, seed=1))
    assert users.tolist() != tuning_users(train, 0.2, seed=2).tolist()
    assert len(tuning_users(train, 0.001, seed=1)) == 1
    with pytest.raises(UserError, match="two training items"):
        tuning_users(Ragged.from_rows([[0], [1]]), 0.2, seed=1)


def test_negatives_share_a_category_or_a_user(catalog: Catalog) -> None:
    train = Ragged.from_rows([[0, 1, 2], [0, 10, 11], [20, 21]])
    table = category_table(catalog)
    rng = np.random.default_rng(0)
    walk = NegativeSampler.build(train, 30, table, category_share=0.0)
    drawn = walk.draw(rng, np.array([0, 1]), np.array([0, 1, 2]), 10)
    assert sorted(drawn.tolist()) == [10, 11]
    same = NegativeSampler.build(train, 30, table, category_share=1.0)
    drawn = same.draw(rng, np.array([0]), np.array([0]), 50)
    known = {1, 2, 10, 11, 20, 21}
    wanted = {i for i in known if set(catalog.categories[i]) & set(catalog.categories[0])}
    assert set(drawn.tolist()) == wanted
    # Item 7 has no category and no user, so its walks are dead ends.
    assert len(same.draw(rng, np.array([7]), np.array([7]), 5)) == 0


def test_short_lists_are_filled_from_the_affinity_of_the_user(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    instruct_config: InstructConfig,
    tokenizer: Tokenizer,
) -> None:
    config = replace(instruct_config, enrich_history=5, enrich_label=3)
    maker = make_maker(catalog, train, writer, config, 1.0)
    kinds = set()
    for user in range(len(train)):
        items, nearby = train[user].tolist(), maker.nearby[user].tolist()
        for epoch in range(6):
            example = maker.example(user, epoch)
            history, candidates, label = read(catalog, tokenizer, example)
            own_history = [item for item in history if item in items]
            own_label = [item for item in label if item in items]
            fills = [item for item in history + label if item not in items]
            assert example.enriched == bool(fills)
            assert set(fills) <= set(nearby)
            assert len(set(history + label)) == len(history + label)
            # The user's own items stay next to the answer; fills come before and after them.
            assert history == [*history[: len(history) - len(own_history)], *own_history]
            assert label[: len(own_label)] == own_label
            now = items.index(own_label[0])
            assert len(own_history) == min(now, 5)
            if len(nearby) >= 8:
                assert len(history) == 5
                assert len(label) >= 3
            assert set(label) <= set(candidates)
            assert not (set(candidates) - set(label)) & {*items, *fills}
            kinds.add((bool(own_history != history), bool(own_label != label)))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_swaps_exchange_items_between_history_and_label_at_their_rate(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    instruct_config: InstructConfig,
    tokenizer: Tokenizer,
) -> None:
    plain = make_maker(catalog, train, writer, replace(instruct_config, label=4), 0.0)
    maker = make_maker(catalog, train, writer, replace(instruct_config, swap=0.3), 0.0)
    exchanged = labels = 0
    for epoch in range(200):
        before, _, targets = read(catalog, tokenizer, plain.example(11, epoch))
        history, _, label = read(catalog, tokenizer, maker.example(11, epoch))
        assert sorted(history + label) == sorted(before + targets)
        assert len(history) == len(before)
        moved = set(label) - set(targets)
        assert moved == set(before) - set(history)
        assert maker.example(11, epoch).swapped == bool(moved)
        if len(before) == 5:  # enough history for every label item to swap
            exchanged += len(moved)
            labels += len(label)
    assert 0.25 < exchanged / labels < 0.35


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_retriever_negatives_are_what_was_proposed_at_that_moment(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    instruct_config: InstructConfig,
    tokenizer: Tokenizer,
    share: float,
) -> None:
    config = replace(instruct_config, retriever_negatives=share)
    users = np.arange(2, len(train))
    moments = draw_moments(train, users, seed=0, count=3)
    # Every moment has ten different top items.
    rng = np.random.default_rng(5)
    proposed = np.array([rng.permutation(30)[:10] for _ in moments.values_N])
    maker = make_maker(
        catalog,
        train,
        writer,
        config,
        1.0,
        Retrieved(moments, proposed.astype(np.int32), np.zeros(proposed.shape, np.float32)),
    )
    for user in users:
        items = train[user].tolist()
        for epoch in range(5):
            _, candidates, label = read(catalog, tokenizer, maker.example(int(user), epoch))
            now = items.index(label[0])
            prefix = moments.offsets_R1[user] + moments[user].tolist().index(now)
            free = set(proposed[prefix].tolist()) - set(items)
            negatives = set(candidates) - set(label)
            assert not negatives & set(items)
            quota = min(len(free), round(share * (12 - len(label))))
            assert len(negatives & free) >= quota


def test_moments_leave_an_item_on_either_side(train: Ragged) -> None:
    moments = draw_moments(train, np.arange(3, 12), seed=0, count=8)
    assert [len(moments[user]) for user in range(3)] == [0, 0, 0]
    for user in range(3, 12):
        found = moments[user].tolist()
        assert found == sorted(set(found))
        assert len(found) == min(8, len(train[user]) - 1)
        assert found[0] >= 1
        assert found[-1] < len(train[user])


def test_items_without_training_interactions_are_never_negatives(catalog: Catalog) -> None:
    train = Ragged.from_rows([[0, 1, 2], [0, 1, 3]])
    sampler = NegativeSampler.build(train, 30, category_table(catalog), 1.0, 1.0)
    rng = np.random.default_rng(0)
    retrieved = np.arange(2, 12)
    drawn = sampler.draw(rng, np.array([0]), np.array([0, 1]), 9, retrieved)
    assert sorted(drawn.tolist()) == [2, 3]
