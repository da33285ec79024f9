"""Properties of every retriever."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

from palr_jax.data.split import Split, leave_one_out
from palr_jax.errors import UserError
from palr_jax.ragged import Ragged
from palr_jax.retrieval.config import Model, RetrieverConfig
from palr_jax.retrieval.interface import Retriever
from palr_jax.retrieval.models import MODELS

NUM_ITEMS = 15
CONFIG = RetrieverConfig(
    dim=8, num_blocks=1, num_heads=2, length=4, batch_size=4, max_epochs=2, dropout=0.1
)


def split_of(seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(NUM_ITEMS)[: rng.integers(3, 10)] for _ in range(20)]
    return leave_one_out(Ragged.from_rows(rows), np.arange(20).astype(str), NUM_ITEMS)


def make(name: Model, seed: int = 0) -> Retriever:
    return MODELS[name](CONFIG, NUM_ITEMS, seed)


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(name: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(name)
    make(name).fit(split_of(), directory)
    return directory


@pytest.fixture
def fitted(name: Model, directory: Path) -> Retriever:
    retriever = make(name)
    retriever.load(directory)
    return retriever


HISTORIES = Ragged.from_rows([[], [3], [1, 2, 3], list(range(12)), [14, 0]])


def test_scores_the_whole_catalog(fitted: Retriever) -> None:
    score_UI = fitted.scores(HISTORIES)
    assert score_UI.shape == (5, NUM_ITEMS)
    assert score_UI.dtype == jnp.float32
    assert np.isfinite(score_UI).all()
    assert fitted.scores(Ragged.from_rows([])).shape == (0, NUM_ITEMS)


def test_recommends_by_score_and_nothing_seen(fitted: Retriever) -> None:
    score_UI = np.asarray(fitted.scores(HISTORIES))
    top = fitted.recommend(HISTORIES, 3)
    for user in range(5):
        unseen = [i for i in range(NUM_ITEMS) if i not in HISTORIES[user]]
        best = sorted(unseen, key=lambda i: (-score_UI[user, i], i))[:3]
        assert top.item_UK[user].tolist() == best
        np.testing.assert_allclose(top.score_UK[user], score_UI[user, best], rtol=1e-5, atol=1e-6)


def test_ranks_targets_by_score(fitted: Retriever) -> None:
    score_UI = np.asarray(fitted.scores(HISTORIES))
    target_U = np.array([4, 5, 6, 13, 9], np.int32)
    for user, rank in enumerate(fitted.target_ranks(HISTORIES, target_U)):
        in_play = [i for i in range(NUM_ITEMS) if i not in HISTORIES[user]]
        average = rankdata(-score_UI[user][in_play], "average")
        assert rank == average[in_play.index(target_U[user])]


def test_a_user_alone_gets_what_the_user_gets_among_others(fitted: Retriever) -> None:
    together = fitted.scores(HISTORIES)
    for user in range(5):
        alone = fitted.scores(HISTORIES.take([user]))[0]
        np.testing.assert_allclose(alone, together[user], atol=1e-5)


def test_one_seed_gives_one_result(name: Model, directory: Path, tmp_path: Path) -> None:
    first, second = make(name), make(name)
    first.load(directory)
    second.fit(split_of(), tmp_path)
    np.testing.assert_array_equal(first.scores(HISTORIES), second.scores(HISTORIES))


def test_refuses_what_it_cannot_recommend(fitted: Retriever) -> None:
    short = fitted.recommend(HISTORIES, 4).item_UK[3]
    assert (short >= 0).tolist() == [True] * 3 + [False]
    with pytest.raises(UserError, match="holds item 15, but the catalog has 15"):
        fitted.recommend(Ragged.from_rows([[15]]), 4)


def test_loading_from_an_empty_directory(name: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage"):
        make(name).load(tmp_path)


def test_loading_for_another_catalog(name: Model, directory: Path) -> None:
    other = MODELS[name](CONFIG, NUM_ITEMS + 1, 0)
    with pytest.raises(UserError, match="delete that folder"):
        other.load(directory)


def test_a_user_without_training_items_harms_nothing(name: Model, tmp_path: Path) -> None:
    rows = [[0, 1], [2, 3, 4, 5, 6], [7, 8]]
    split = leave_one_out(Ragged.from_rows(rows), np.arange(3).astype(str), NUM_ITEMS)
    retriever = make(name)
    retriever.fit(split, tmp_path)
    assert np.isfinite(retriever.scores(split.histories("test"))).all()
