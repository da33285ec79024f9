import re

import numpy as np
import pytest

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.examples import Example, ExampleMaker, tuning_users
from palr_jax.instruct.negatives import NegativeSampler
from palr_jax.instruct.profiles import category_table
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizer import Tokenizer
from palr_jax.ragged import Ragged


def make_maker(
    catalog: Catalog, train: Ragged, writer: PromptWriter, config: InstructConfig, share: float
) -> ExampleMaker:
    sampler = NegativeSampler.build(train, len(catalog), category_table(catalog), 0.5)
    return ExampleMaker(train, [""] * len(train), writer, sampler, config, share, seed=3)


def items_of(catalog: Catalog, text: str) -> list[int]:
    return [catalog.index_of(title) for title in re.findall(r'"(.*)"\n', text)]


def read(catalog: Catalog, tokenizer: Tokenizer, example: Example) -> tuple[list[int], ...]:
    history, _, rest = tokenizer.decode(example.prompt_T).partition("The candidate movies are:")
    label = tokenizer.decode(example.label_M)
    return items_of(catalog, history), items_of(catalog, rest), items_of(catalog, label)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_history_and_label_are_neighbouring_windows_of_training_items(
    catalog, train, writer, instruct_config, tokenizer, share
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


def test_candidates_are_in_no_order(catalog, train, writer, instruct_config, tokenizer) -> None:
    maker = make_maker(catalog, train, writer, instruct_config, 1.0)
    places = []
    for epoch in range(200):
        _, candidates, label = read(catalog, tokenizer, maker.example(11, epoch))
        places.append(candidates.index(label[0]) / max(len(candidates) - 1, 1))
    assert 0.4 < np.mean(places) < 0.6


def test_an_example_is_a_function_of_user_epoch_and_seed(
    catalog, train, writer, instruct_config
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
    wanted = {i for i in range(1, 30) if set(catalog.categories[i]) & set(catalog.categories[0])}
    assert set(drawn.tolist()) <= wanted
    assert len(drawn) > len(wanted) // 2
    # Item 7 has no category and no user: there is nowhere to walk to.
    assert len(same.draw(rng, np.array([7]), np.array([7]), 5)) == 0
