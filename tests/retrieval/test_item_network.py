from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.data.split import Split, leave_one_out
from palr_jax.ragged import Ragged
from palr_jax.retrieval.config import SEQUENTIAL, Model, RetrieverConfig
from palr_jax.retrieval.item_network import FEATURES, WIDTH, ItemNetwork, scaled_features
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.models import MODELS, fitted
from palr_jax.retrieval.rows import NEXT_ITEM
from palr_jax.retrieval.sasrec import SASRec
from palr_jax.retrieval.sequential import Sequential
from palr_jax.retrieval.step import Rates, RetrieverState, retriever_step

ITEMS = 12
PLAIN = RetrieverConfig(
    dim=8, num_heads=2, length=8, dropout=0.1, learning_rate=0.02, weight_decay=0.5,
    averaging=0.5, batch_size=4, max_epochs=8, patience=8,
)  # fmt: skip
CONFIG = replace(PLAIN, item_features="words")
# Items alternate between two kinds, which their features tell apart.
KIND_I = np.arange(ITEMS) % 2
FEATURE_IR = np.eye(2, dtype=np.float32)[KIND_I]


def split_of(unseen: tuple[int, ...] = ()) -> Split:
    """Users who stay within one kind of items, and never meet the unseen ones."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(60):
        kind = [i for i in range(ITEMS) if i % 2 == user % 2 and i not in unseen]
        rows.append(rng.permutation(kind)[: rng.integers(3, len(kind) + 1)])
    return leave_one_out(Ragged.from_rows(rows), np.arange(60).astype(str), ITEMS)


def test_features_are_centred_and_padded() -> None:
    rng = np.random.default_rng(0)
    vectors_IR = rng.normal(3, 2, (ITEMS, 5)).astype(np.float32)
    scaled_IR = scaled_features(vectors_IR)
    assert scaled_IR.shape == (ITEMS + 1, WIDTH)
    assert not scaled_IR[-1].any()
    assert not scaled_IR[:, 5:].any()
    np.testing.assert_allclose(scaled_IR[:-1].mean(axis=0), 0, atol=1e-6)
    assert (scaled_IR[:-1] ** 2).sum(axis=1).mean() == pytest.approx(1, rel=1e-5)
    centred_IR = vectors_IR - vectors_IR.mean(axis=0)
    np.testing.assert_allclose(
        scaled_IR[:-1, :5] * np.linalg.norm(centred_IR) / ITEMS**0.5, centred_IR, rtol=1e-4
    )


def test_an_item_is_its_embedding_plus_the_map_of_its_features() -> None:
    network = ItemNetwork(CONFIG, ITEMS, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    network.feature_IR[...] = jnp.asarray(rng.normal(size=(ITEMS + 1, WIDTH)), jnp.float32)
    network.feature_map_RD[...] = jnp.asarray(rng.normal(size=(WIDTH, 8)), jnp.float32)
    expected_ID = np.asarray(network.item_ID[...]) + np.asarray(
        network.feature_IR[...], np.float64
    ) @ np.asarray(network.feature_map_RD[...], np.float64)
    np.testing.assert_allclose(network.items(), expected_ID, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(network.output_items(), network.items()[:-1])


@pytest.mark.parametrize("model", SEQUENTIAL)
def test_without_features_networks_have_the_parameters_they_always_had(model: Model) -> None:
    plain = MODELS[model](replace(PLAIN, model=model), ITEMS, 0)
    featured = MODELS[model](replace(CONFIG, model=model), ITEMS, 0)
    assert isinstance(plain, Sequential)
    assert isinstance(featured, Sequential)
    added = {FEATURES, "feature_map_RD"}
    assert set(featured._params) - set(plain._params) == added
    assert not added & set(plain._params)
    for name, values in plain._params.items():
        jax.tree.map(np.testing.assert_array_equal, values, featured._params[name])


def test_a_step_trains_the_map_and_leaves_the_features() -> None:
    retriever = Sequential(SASRec, NEXT_ITEM, CONFIG, ITEMS, 0)
    retriever.use_features(FEATURE_IR)
    rows = NEXT_ITEM.training(split_of().train, ITEMS, CONFIG.length, CONFIG.batch_size, 0, 0)
    batch = jax.tree.map(lambda array: array[: CONFIG.batch_size], rows)
    step = partial(retriever_step, retriever._graph, Loss("cross_entropy", 1), Rates(0.1, 0.5, 0.5))
    before = RetrieverState.initial(retriever._params)
    given_IR = np.array(retriever._params[FEATURES])
    after, _ = step(before, batch, jax.random.key(0))
    for params in (after.params, after.average):
        np.testing.assert_array_equal(params[FEATURES], given_IR)
        assert np.asarray(params["feature_map_RD"]).any()


def test_an_item_without_interactions_is_found_by_its_features(tmp_path: Path) -> None:
    unseen = (4, 7)  # one of each kind
    split = split_of(unseen)
    assert not np.isin(split.train.values_N, unseen).any()
    retriever = fitted(CONFIG, split, 0, tmp_path, FEATURE_IR)
    scores_UI = np.asarray(retriever.scores(split.histories("test")))
    kind_U = split.test_U % 2
    own_U = np.where(kind_U == 0, scores_UI[:, 4], scores_UI[:, 7])
    other_U = np.where(kind_U == 0, scores_UI[:, 7], scores_UI[:, 4])
    assert (own_U > other_U).mean() > 0.9


def test_a_checkpoint_holds_the_features(tmp_path: Path) -> None:
    split = split_of()
    trained = fitted(CONFIG, split, 0, tmp_path, FEATURE_IR)
    loaded = MODELS["sasrec"](CONFIG, ITEMS, 0)
    loaded.load(tmp_path)
    histories = split.histories("test")
    np.testing.assert_array_equal(loaded.scores(histories), trained.scores(histories))


def test_features_must_be_set_and_belong_to_sequential_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call use_features first"):
        fitted(CONFIG, split_of(), 0, tmp_path)
    with pytest.raises(ValueError, match=r"item_features \(words\) is not an option of bpr_mf"):
        replace(CONFIG, model="bpr_mf")
