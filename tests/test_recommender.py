from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax import Recommender, UserError
from palr_jax.decoding import score as score_module
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.item_lists import items_named
from palr_jax.llm.llama import Llama
from palr_jax.parallel.config import MeshConfig
from tests.programs import programs
from tests.progress import silent

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
    known = items_named(recommender.catalog, [HISTORY], "histories", "title")
    (profile,) = recommender.profiles(known)
    for item in slate:
        assert item.explanation is not None
        assert item.explanation.profile == profile
        for title, lift in item.explanation.items:
            assert lift > 0
            # The profile stays as it is; only the item leaves the prompt.
            without = replace(recommender, config=recommender.config)
            shorter = [[one for one in HISTORY if one != title]]
            known = items_named(without.catalog, shorter, "histories", "title")
            candidates = np.array([[recommender.catalog.index_of(other) for other in OWN]])
            logp = without.ranker.score(known, [profile], candidates, silent)[0]
            place = OWN.index(item.title)
            assert lift == pytest.approx(whole[item.title] - logp[place], abs=1e-4)


def test_a_mean_over_orders_depends_on_the_given_order_less(recommender: Recommender) -> None:
    ranker = recommender.ranker
    rng = np.random.default_rng(0)
    known = items_named(recommender.catalog, [HISTORY] * 6, "histories", "title")
    given = rng.permuted(np.tile(np.arange(20, 32), (6, 1)), axis=1)
    profiles = recommender.profiles(known)

    def spread(orders: int) -> float:
        uniform = np.zeros((6, 1, 12), np.float32)
        logp = ranker.score_under(known, profiles, given, uniform, silent, orders, seed=1)[:, 0]
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
        ({"candidates": [[OWN[0], OWN[0]]]}, "appears twice"),
        ({"candidates": []}, "0 lists for 1 histories"),
        ({"exclude": [[], []]}, "2 lists for 1 histories"),
        ({"k": 21}, "k goes from 1 to the number of candidates, 20"),
        ({"k": -1, "candidates": [OWN]}, "k: a whole number from 1 on is expected, not -1"),
        ({"k": 3.0}, "k: a whole number from 1 on is expected, not 3.0"),
        ({"k": True}, "k: a whole number from 1 on is expected, not True"),
        ({"candidates": [OWN[0]]}, "candidates, list 1: a list is expected, not 'Story, 20"),
        ({"candidates": [[7]]}, "candidates, list 1, entry 1: a text is expected, not 7"),
        ({"exclude": OWN[0]}, "exclude: a list is expected, not 'Story, 20"),
        ({"exclude": [None]}, "exclude, list 1: a list is expected, not None"),
        ({"explain": "no"}, "explain: True or False is expected, not 'no'"),
    ],
)
def test_mistakes_end_in_one_line(
    recommender: Recommender, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        recommender.recommend([HISTORY], **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("titles", "categories", "complaint"),
    [
        (["aa", "bb"], [["x"]], "1 lists of categories for 2 titles: give one for each"),
        (["aa"], [["x"], ["y"]], "2 lists of categories for 1 titles"),
        (["aa"], ["Drama"], "categories, list 1: a list is expected, not 'Drama'"),
        (["aa"], [[None]], "categories, list 1, entry 1: a text is expected, not None"),
        ("aa", None, "titles: a list is expected, not 'aa'"),
        ([5], None, "titles, entry 1: a text is expected, not 5"),
        ([" \n"], None, "a new item has an empty title"),
        (["aa", "a\u0301a", "áa"], None, "an item titled 'áa' already exists"),
    ],
)
def test_new_items_of_another_kind_are_refused(
    recommender: Recommender, titles: Any, categories: Any, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        recommender.with_items(titles, categories)


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers()))),
    st.dictionaries(st.text(), st.integers(), max_size=2), st.just(np.array("x")),
    st.just(np.array([["Story, 3 (1953)"]])), st.sampled_from([[HISTORY], [OWN], HISTORY, OWN]),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_argument_gives_slates_or_one_line(
    recommender: Recommender, data: st.DataObject
) -> None:
    right: dict[str, Any] = {
        "histories": [HISTORY],
        "k": 3,
        "candidates": None,
        "exclude": None,
        "explain": False,
    }
    wrong = data.draw(st.lists(st.sampled_from(sorted(right)), min_size=1, max_size=2))
    arguments = right | {name: data.draw(ANY, label=name) for name in wrong}
    with suppress(UserError):
        slates = recommender.recommend(**arguments)
        assert len(slates) == len(arguments["histories"])
        for slate in slates:
            assert len({item.title for item in slate}) == len(slate) <= arguments["k"]


@settings(deadline=None, max_examples=150)
@given(ANY, ANY, ANY, ANY)
def test_the_other_entry_points_too(
    recommender: Recommender, first: Any, second: Any, third: Any, user: Any
) -> None:
    for call in (
        lambda: recommender.with_items(first, second).rank(HISTORY, OWN),
        lambda: recommender.rank(first, third),
        lambda: recommender.rank(HISTORY, third),
        lambda: recommender.history_of(user),
    ):
        with suppress(UserError):
            assert call()


@pytest.mark.parametrize("path", [None, 3, b"runs"])
def test_a_run_is_named_by_a_path(path: Any) -> None:
    with pytest.raises(UserError, match="the path of a run is expected"):
        Recommender.load(path)


def test_titles_are_found_in_whatever_form_they_are_written(recommender: Recommender) -> None:
    more = recommender.with_items(["Amélie  of\nthe sea"])
    for title in ("Amélie of the sea", "AME\u0301LIE OF  THE SEA", " Ame\u0301lie\tof the sea\n"):
        assert more.rank([title], OWN) == more.rank(["Amélie of the sea"], OWN)


def test_a_user_with_few_unseen_items_gets_those(recommender: Recommender) -> None:
    titles = list(recommender.catalog.titles)
    seen, left = titles[:-4], titles[-4:]
    slates = recommender.recommend([seen, HISTORY, titles], explain=True)
    assert {item.title for item in slates[0]} == set(left)
    assert sum(item.score for item in slates[0]) == pytest.approx(1, abs=1e-4)
    assert len(slates[1]) == 10
    assert slates[2] == []
    # Who shares the call with them gets what they would get alone.
    alone = recommender.recommend([HISTORY], explain=True)[0]
    assert [item.title for item in slates[1]] == [item.title for item in alone]


def test_many_excluded_titles_leave_the_rest(recommender: Recommender) -> None:
    titles = list(recommender.catalog.titles)
    left = titles[30:44]
    banned = [title for title in titles if title not in left]
    (slate,) = recommender.recommend([HISTORY], k=20, exclude=[banned])
    assert {item.title for item in slate} == set(left) - set(HISTORY)


def test_lists_of_any_length_share_programs(recommender: Recommender) -> None:
    rng = np.random.default_rng(0)
    titles = np.array(recommender.catalog.titles)
    before = programs(score_module.score_step)
    for length in range(1, 41):
        recommender.rank(HISTORY, rng.permutation(titles)[:length].tolist())
    # Widths of 8 to 64, few sizes of tries, two or three widths of prompts.
    assert programs(score_module.score_step) - before <= 12


def test_nan_scores_end_in_one_line(recommender: Recommender) -> None:
    broken: Llama = jax.tree.map(lambda leaf: leaf * np.nan, recommender.ranker.model)
    hurt = replace(recommender, ranker=replace(recommender.ranker, model=broken))
    with pytest.raises(UserError, match="not numbers"):
        hurt.recommend([HISTORY])


def test_items_are_named_by_title_or_id(recommender: Recommender) -> None:
    history, own = ["3", "5", "4"], ["20", "31", "8"]
    assert recommender.recommend([history], by="id", exclude=[own]) == recommender.recommend(
        [HISTORY], exclude=[OWN]
    )
    by_title = dict(recommender.rank(HISTORY, OWN))
    ranked = recommender.rank(history, own, by="id")
    assert [by_title[OWN[own.index(item)]] for item, _ in ranked] == [logp for _, logp in ranked]
    user = str(recommender.prepared.split.user_ids[0])
    ids, titles = recommender.history_of(user, by="id"), recommender.history_of(user)
    assert [recommender.catalog.index_of_id(one) for one in ids] == [
        recommender.catalog.index_of(one) for one in titles
    ]
    with pytest.raises(UserError, match=r"no item has the id '31 '; the nearest ids are '31'"):
        recommender.rank(["31 "], own, by="id")
    with pytest.raises(UserError, match="by: 'title' or 'id' is expected, not 'isbn'"):
        recommender.recommend([history], by="isbn")  # type: ignore[arg-type]


def test_added_items_get_the_tokens_they_would_get_with_all(recommender: Recommender) -> None:
    fresh = ["A tale (2031)", "A tale of tales " * 30, "A tale of tales " * 31]
    more = recommender.with_items(fresh).ranker.items
    longer = recommender.catalog.with_items(["new-1", "new-2", "new-3"], fresh)
    writer = recommender.ranker.writer
    whole = tokenize_items(longer, writer.tokenizer, recommender.config.instruct).tokens
    np.testing.assert_array_equal(more.values_N, whole.values_N)
    np.testing.assert_array_equal(more.offsets_R1, whole.offsets_R1)


def test_long_histories_are_cut_and_it_is_said(
    recommender: Recommender, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = recommender.ranker.writer
    short = replace(writer.config, length=len(writer.prompt([], "", [20, 31, 7]).tokens_T) + 30)
    tight = type(writer)(writer.tokenizer, recommender.ranker.items, short)
    cut = replace(recommender, ranker=replace(recommender.ranker, writer=tight))
    assert len(cut.rank(HISTORY * 2, OWN)) == 3
    assert "1 of 1 histories were cut below 5 items, oldest first" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, world: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        Recommender.load(tmp_path)
    with pytest.raises(UserError, match="is missing: name a step that is there"):
        Recommender.load(world / "runs/tiny/ranker/PALR_v2/77")
