"""Properties of the models that see a history as a set."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.data.split import Split, leave_one_out
from palr_jax.errors import UserError
from palr_jax.ragged import Ragged
from palr_jax.retrieval.bpr_mf import BPRMF
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.lightgcn import LightGCN
from palr_jax.retrieval.ncf import NCF
from palr_jax.retrieval.pairwise import Edges, PairNetwork, Pairwise
from palr_jax.trees import State, split_off

USERS, ITEMS = 60, 20
CONFIG = RetrieverConfig(
    dim=8, num_blocks=2, learning_rate=0.05, weight_decay=0.01, averaging=0.5, batch_size=64,
    negatives=2, max_epochs=12, patience=12,
)  # fmt: skip


def two_tastes() -> Split:
    """Users of even items and users of odd items."""
    rng = np.random.default_rng(0)
    rows = [2 * rng.permutation(ITEMS // 2)[:7] + user % 2 for user in range(USERS)]
    return leave_one_out(Ragged.from_rows(rows), np.arange(USERS).astype(str), ITEMS)


@pytest.mark.parametrize("network", [BPRMF, NCF, LightGCN], ids=lambda made: made.__name__)
def test_finds_the_taste_of_a_user_outside_the_training_data(
    network: type[PairNetwork], tmp_path: Path
) -> None:
    model = Pairwise(network, CONFIG, ITEMS, seed=0)
    model.fit(two_tastes(), tmp_path)
    top = model.recommend(Ragged.from_rows([[0, 4, 8], [1, 5, 9, 13]]), 5)
    assert (top.item_UK[0] % 2 == 0).all()
    assert (top.item_UK[1] % 2 == 1).all()


def edges() -> Edges:
    rng = np.random.default_rng(1)
    matrix = rng.random((6, 9)) < 0.4
    user_N, item_N = np.nonzero(matrix)
    return Edges(user_N.astype(np.int32), item_N.astype(np.int32))


def test_lightgcn_is_that_of_its_equations() -> None:
    links = edges()
    model = LightGCN(CONFIG, links, 6, 9, nnx.Rngs(0))
    adjacent = np.zeros((15, 15))
    adjacent[links.user_N, 6 + links.item_N] = adjacent[6 + links.item_N, links.user_N] = 1
    degree = np.maximum(adjacent.sum(1), 1)
    smooth = adjacent / np.sqrt(np.outer(degree, degree))
    layer = np.concatenate([model.user_UD[...], model.item_ID[...]])
    layers = [layer, smooth @ layer, smooth @ smooth @ layer]
    expected = np.mean(layers, axis=0)
    vectors = model.vectors()
    np.testing.assert_allclose(vectors.user_UX, expected[:6], atol=1e-6)
    np.testing.assert_allclose(vectors.item_IX, expected[6:], atol=1e-6)


def test_what_items_add_makes_a_user_of_lightgcn_whole() -> None:
    links = edges()
    vectors = LightGCN(CONFIG, links, 6, 9, nnx.Rngs(0)).vectors()
    for user in range(6):
        mine = links.item_N[links.user_N == user]
        added = vectors.context_IX[mine].sum(0) / np.sqrt(max(len(mine), 1))
        np.testing.assert_allclose(vectors.own_UX[user] + added, vectors.user_UX[user], atol=1e-6)


def test_ncf_matches_by_a_product_and_a_network() -> None:
    model = NCF(CONFIG, edges(), 6, 9, nnx.Rngs(0))
    vectors, weights = model.vectors(), model.weights()
    found = NCF.match(weights, vectors.user_UX, jnp.broadcast_to(vectors.item_IX, (6, 9, 16)))
    everything = NCF.match_all({"user_BX": vectors.user_UX, "weights": weights}, vectors.item_IX)
    np.testing.assert_allclose(found, everything, atol=1e-6)
    user_X, item_X = np.asarray(vectors.user_UX[2]), np.asarray(vectors.item_IX[5])
    inner = np.concatenate([user_X[8:], item_X[8:]])
    for layer in ("first", "second"):
        bias = np.asarray(weights[f"{layer}_bias"])
        inner = np.maximum(inner @ np.asarray(weights[layer]) + bias, 0)
    joined = np.concatenate([user_X[:8] * item_X[:8], inner])
    np.testing.assert_allclose(found[2, 5], joined @ np.asarray(weights["last"]), atol=1e-6)


@pytest.mark.parametrize("network", [BPRMF, NCF, LightGCN], ids=lambda made: made.__name__)
def test_every_parameter_learns(network: type[PairNetwork]) -> None:
    links = edges()
    graph, params, constants = split_off(network(CONFIG, links, 6, 9, nnx.Rngs(0)), nnx.Param)

    @jax.jit
    @jax.grad
    def gradient(params: State) -> jax.Array:
        model = nnx.merge(graph, params, constants)
        vectors = model.vectors()
        items = jnp.broadcast_to(vectors.item_IX, (6, *vectors.item_IX.shape))
        return jnp.sum(jnp.tanh(model.match(model.weights(), vectors.user_UX, items)))

    assert all(leaf.any() for leaf in jax.tree.leaves(gradient(params)))


def test_a_loss_over_the_catalog_is_refused() -> None:
    config = RetrieverConfig(model="bpr_mf", loss="cross_entropy")
    with pytest.raises(UserError, match=r"retriever.loss: bpr_mf is trained with bce, gbce or bpr"):
        Pairwise(BPRMF, config, ITEMS, seed=0)
