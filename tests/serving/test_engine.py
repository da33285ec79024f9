from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from palr_jax import Recommender, UserError
from palr_jax.ranking.ranker import NotNumbersError
from palr_jax.serving.compiling import Compilations
from palr_jax.serving.engine import Engine
from palr_jax.serving.limits import Limits
from palr_jax.serving.questions import Answer, Question

LIMITS = Limits(history=60, candidates=32, exclude=16)


@pytest.fixture(scope="module")
def recommender(world: Path) -> Recommender:
    return Recommender.load(world / "runs/tiny")


@pytest.fixture(scope="module")
def engine(recommender: Recommender) -> Engine:
    made = Engine(recommender, LIMITS, most_rows=8)
    made.warm_up(lambda done, total: None)
    return made


def questions(seed: int, count: int, items: int = 69) -> list[Question]:
    """Of all kinds: long and short histories, own candidates, excluded items, explained ones."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        history = tuple(map(int, rng.permutation(items)[: rng.integers(0, 40)]))
        others = [item for item in rng.permutation(items).tolist() if item not in history]
        if number % 3 == 0:
            own = tuple(others[: rng.integers(1, 32)])
            fresh = ("A story, told anew (2030)",) if number % 2 else ()
            own += tuple(range(items, items + len(fresh)))
            made.append(Question(history, own, fresh=fresh, explain=number % 6 == 0))
        else:
            made.append(Question(history, exclude=tuple(sorted(others[: rng.integers(0, 17)]))))
    return made


def alone(recommender: Recommender, question: Question, k: int = 20) -> list[tuple[str, float]]:
    """What `Recommender.recommend` says of one question."""
    if question.fresh:
        recommender = recommender.with_items(question.fresh)
    titles = recommender.catalog.titles

    def named(items: Sequence[int]) -> list[str]:
        return [titles[item] for item in items]

    (slate,) = recommender.recommend(
        [named(question.history)],
        k,
        candidates=None if question.candidates is None else [named(question.candidates)],
        exclude=[named(question.exclude)],
    )
    return [(item.title, item.score) for item in slate]


def by_title(recommender: Recommender, question: Question, answer: Answer) -> dict[str, float]:
    titles = (*recommender.catalog.titles, *question.fresh)
    pairs = zip(answer.items_C, np.exp(answer.logp_C), strict=True)
    return {titles[item]: float(score) for item, score in pairs}


def test_a_batch_says_what_each_would_hear_alone(engine: Engine, recommender: Recommender) -> None:
    asked = questions(0, 24)
    for question, answer in zip(asked, engine.answer(asked), strict=True):
        assert isinstance(answer, Answer)
        mine = by_title(recommender, question, answer)
        for title, score in alone(recommender, question):
            assert mine[title] == pytest.approx(score, abs=2e-5)
        order = [answer.items_C[place] for place in answer.order_C]
        assert len({*order}) == len(order)


def test_the_mean_over_orders_is_the_same_too(world: Path, recommender: Recommender) -> None:
    evaluate = replace(recommender.config.evaluate, shuffles=3)
    shuffled = replace(recommender, config=replace(recommender.config, evaluate=evaluate))
    engine = Engine(shuffled, LIMITS, most_rows=8)
    asked = questions(1, 5)
    for question, answer in zip(asked, engine.answer(asked), strict=True):
        assert isinstance(answer, Answer)
        mine = by_title(shuffled, question, answer)
        for title, score in alone(shuffled, question):
            assert mine[title] == pytest.approx(score, abs=2e-5)


def test_nothing_is_compiled_after_the_start(engine: Engine) -> None:
    heard = Compilations()
    for seed in range(8):
        asked = questions(100 + seed, 1 + 3 * seed)
        assert all(isinstance(answer, Answer) for answer in engine.answer(asked))
    alike = Question((1, 2), tuple(range(10, 42)))
    assert isinstance(engine.answer([alike])[0], Answer)
    assert heard.count == 0


def test_explanations_are_those_of_the_recommender(
    engine: Engine, recommender: Recommender
) -> None:
    titles = recommender.catalog.titles
    (answer,) = engine.answer([Question((3, 5, 4), explain=True)])
    (slate,) = recommender.recommend([[titles[3], titles[5], titles[4]]], explain=True)
    assert isinstance(answer, Answer)
    assert answer.lifts is not None
    for item in slate:
        assert item.explanation is not None
        place = [titles[one] for one in answer.items_C].index(item.title)
        assert answer.lifts.profile_C[place] == pytest.approx(
            item.explanation.profile_lift, abs=1e-4
        )
        for title, lift in item.explanation.items:
            row = [titles[one] for one in answer.lifts.item_H].index(title)
            assert answer.lifts.lift_HC[row, place] == pytest.approx(lift, abs=1e-4)


def test_a_user_without_unseen_items_gets_an_empty_slate(engine: Engine) -> None:
    everything = tuple(range(len(engine.recommender.catalog)))
    limits = replace(LIMITS, history=len(everything))
    wide = Engine(engine.recommender, limits, most_rows=8)
    nothing, some = wide.answer([Question(everything), Question((1,))])
    assert isinstance(nothing, Answer)
    assert not len(nothing.items_C)
    assert isinstance(some, Answer)
    assert len(some.items_C) == 20


def test_a_question_that_cannot_be_answered_leaves_the_others_alone(engine: Engine) -> None:
    taken = engine.recommender.catalog.titles[4]
    wrong = Question((1,), (69,), fresh=(taken,))
    right = Question((1,), (7, 8))
    reason, answer = engine.answer([wrong, right])
    assert isinstance(reason, UserError)
    assert "already" in str(reason)
    assert isinstance(answer, Answer)


def test_weights_that_are_no_numbers_fail_at_the_start(recommender: Recommender) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.nan, recommender.ranker.model)
    hurt = replace(recommender, ranker=replace(recommender.ranker, model=broken))
    with pytest.raises(NotNumbersError, match="not numbers"):
        Engine(hurt, LIMITS, most_rows=1).warm_up(lambda done, total: None)
