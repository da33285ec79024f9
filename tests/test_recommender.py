from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from palr_jax import Recommender, UserError
from palr_jax.llm.llama import Llama
from palr_jax.sharding import MeshConfig

HISTORY = ["Story, 3 (1953)", "Story, 5 (1955)", "Story, 4 (1954)"]
OWN = ["Story, 20 (1970)", "Story, 31 (1981)", "Story, 8 (1958)"]


@pytest.fixture(scope="module")
def recommender(world: Path) -> Recommender:
    return Recommender.load(world / "runs/tiny")


def test_own_candidates_are_ranked_and_their_probabilities_sum_to_one(
    recommender: Recommender,
) -> None:
    ranked = recommender.rank(HISTORY, OWN)
    assert {title for title, _ in ranked} == set(OWN)
    logps = [logp for _, logp in ranked]
    assert logps == sorted(logps, reverse=True)
    assert np.exp(logps).sum() == pytest.approx(1, abs=1e-5)
    (slate,) = recommender.recommend([HISTORY], candidates=[OWN])
    assert [item.title for item in slate] == [title for title, _ in ranked]
    np.testing.assert_allclose([item.score for item in slate], np.exp(logps), rtol=1e-4)


def test_a_user_with_few_candidates_gets_as_many(recommender: Recommender) -> None:
    one, many = recommender.recommend([HISTORY, []], k=2, candidates=[OWN[:1], OWN])
    assert [item.title for item in one] == OWN[:1]
    assert one[0].score == pytest.approx(1)
    assert len(many) == 2


def test_history_and_excluded_items_are_not_recommended(recommender: Recommender) -> None:
    histories = [HISTORY, HISTORY[:1]]
    plain = recommender.recommend(histories)
    banned = [[item.title for item in plain[0][:4]], []]
    fresh = recommender.recommend(histories, exclude=banned)
    assert not {item.title for item in fresh[0]} & {*banned[0], *HISTORY}
    assert len(fresh[0]) == 10
    # The candidates are the same but for the other user's four more, which fall away again.
    assert [item.title for item in fresh[1]] == [item.title for item in plain[1]]
    (left,) = recommender.recommend([HISTORY], candidates=[[*OWN, *HISTORY]], exclude=[OWN[:1]])
    assert {item.title for item in left} == set(OWN[1:])


def test_new_items_are_ranked_by_their_text(recommender: Recommender) -> None:
    fresh = "Story, the next one (2031)"
    more = recommender.with_items([fresh], [["Drama"]])
    ranked = dict(more.rank([*HISTORY, fresh], [*OWN, "Story, 40 (1990)"]))
    assert len(ranked) == 4
    (slate,) = more.recommend([HISTORY], candidates=[[*OWN, fresh]])
    assert {item.item_id for item in slate} >= {"new-1"}
    # Known items are ranked as before.
    assert more.rank(HISTORY, OWN) == recommender.rank(HISTORY, OWN)
    assert len(more.recommend([[fresh]])[0]) == 10
    with pytest.raises(UserError, match="already"):
        more.with_items([fresh])


def test_explanations_are_differences_of_scores(recommender: Recommender) -> None:
    (slate,) = recommender.recommend([HISTORY], k=3, candidates=[OWN], explain=True)
    whole = dict(recommender.rank(HISTORY, OWN))
    profile = recommender.profiles(recommender._items([HISTORY]))[0]
    for item in slate:
        assert item.explanation is not None
        assert item.explanation.profile == profile
        for title, lift in item.explanation.items:
            assert lift > 0
            # The profile stays as it is; only the item leaves the prompt.
            without = replace(recommender, config=recommender.config)
            known = without._items([[other for other in HISTORY if other != title]])
            candidates = np.array([[recommender.catalog.index_of(other) for other in OWN]])
            logp = without.ranker.score(known, [profile], candidates, "test")[0]
            place = OWN.index(item.title)
            assert lift == pytest.approx(whole[item.title] - logp[place], abs=1e-4)


def test_a_mean_over_orders_depends_on_the_given_order_less(recommender: Recommender) -> None:
    ranker = recommender.ranker
    rng = np.random.default_rng(0)
    known = recommender._items([HISTORY] * 6)
    given = rng.permuted(np.tile(np.arange(20, 32), (6, 1)), axis=1)
    profiles = recommender.profiles(known)

    def spread(orders: int) -> float:
        logp = ranker.score_in_orders(known, profiles, given, "test", orders, seed=1)
        np.testing.assert_allclose(np.exp(logp).sum(1), 1, atol=1e-4)
        by_item = np.take_along_axis(logp, np.argsort(given, axis=1), axis=1)
        return float(by_item.std(axis=0).mean())

    assert spread(8) < 0.7 * spread(0)


def test_a_checkpoint_and_a_mesh_give_the_same(world: Path, recommender: Recommender) -> None:
    path = world / "runs/tiny/ranker/PALR_v2" / str(recommender.step)
    mesh = MeshConfig(data=2, fsdp=2)
    divided = Recommender.load(path, mesh)
    assert len(divided.ranker.shards.mesh.devices.flat) == 4
    for mine, other in zip(
        recommender.recommend([HISTORY])[0], divided.recommend([HISTORY])[0], strict=True
    ):
        assert mine.title == other.title
        assert mine.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"candidates": [["Story, 777"]]}, "no single item is titled 'Story, 777'"),
        ({"candidates": [[]]}, "list 1: no candidates are left"),
        ({"candidates": [HISTORY]}, "list 1: no candidates are left"),
        ({"candidates": [[OWN[0], OWN[0]]]}, "is there twice"),
        ({"candidates": []}, "0 lists for 1 histories"),
        ({"exclude": [[], []]}, "2 lists for 1 histories"),
        ({"k": 21}, "k goes from 1 to the number of candidates, 20"),
    ],
)
def test_mistakes_end_in_one_line(
    recommender: Recommender, arguments: dict, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        recommender.recommend([HISTORY], **arguments)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_end_in_one_line(recommender: Recommender) -> None:
    broken: Llama = jax.tree.map(lambda leaf: leaf * np.nan, recommender.ranker.model)
    hurt = replace(recommender, ranker=replace(recommender.ranker, model=broken))
    with pytest.raises(UserError, match="not numbers"):
        hurt.recommend([HISTORY])


def test_long_histories_are_cut_and_it_is_said(
    recommender: Recommender, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = recommender.ranker.writer
    short = replace(writer.config, length=len(writer.prompt([], "", [20, 31, 7])) + 30)
    tight = type(writer)(writer.tokenizer, recommender.ranker.items, short)
    cut = replace(recommender, ranker=replace(recommender.ranker, writer=tight))
    assert len(cut.rank(HISTORY * 2, OWN)) == 3
    assert "1 of 1 histories were cut below 5 items, oldest first" in capsys.readouterr().err


def test_a_place_that_is_no_run(tmp_path: Path, world: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        Recommender.load(tmp_path)
    with pytest.raises(UserError, match="is missing: name a step that is there"):
        Recommender.load(world / "runs/tiny/ranker/PALR_v2/77")
