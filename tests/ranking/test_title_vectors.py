"""Vectors of titles: alike titles get alike vectors, whatever made them."""

import jax.numpy as jnp
import numpy as np
import pytest

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.llm.checkpoints.loading import load
from palr_jax.llm.llama import Llama, causal_layout
from palr_jax.ranking.title_vectors import language_model_vectors, word_vectors
from tests.locations import SHARED

STORIES = SHARED / "models" / "stories260K"


def catalog_of(titles: list[str]) -> Catalog:
    ids = np.array([f"i{number}" for number in range(len(titles))])
    return Catalog(ids, tuple(titles), tuple(() for _ in titles))


def cosines(vectors_IR: np.ndarray) -> np.ndarray:
    unit_IR = vectors_IR / np.linalg.norm(vectors_IR, axis=1, keepdims=True)
    return unit_IR @ unit_IR.T


BRANDS = ("Opi", "Revlon", "Nivea")
PRODUCTS = ("nail lacquer", "lip balm", "hand cream", "face mask")


@pytest.fixture
def catalog() -> Catalog:
    colours = ("red", "blue", "green", "black", "white")
    return catalog_of([f"{b} {p} {c}" for b in BRANDS for p in PRODUCTS for c in colours])


def test_titles_that_share_rare_words_are_alike(catalog: Catalog) -> None:
    cosine_II = cosines(word_vectors(catalog, width=10))
    words = [set(title.split()) for title in catalog.titles]
    shared_II = np.array([[len(one & two) for two in words] for one in words])
    assert cosine_II[shared_II == 3].mean() > cosine_II[shared_II == 1].mean() + 0.3
    assert cosine_II[shared_II == 1].mean() > cosine_II[shared_II == 0].mean() + 0.1


def test_all_singular_vectors_give_the_cosines_of_tf_idf(catalog: Catalog) -> None:
    words = [title.casefold().split() for title in catalog.titles]
    vocabulary = sorted({word for row in words for word in row})
    table_IW = np.array([[word in row for word in vocabulary] for row in words], float)
    table_IW *= np.log(len(words) / table_IW.sum(axis=0))
    vectors_IR = word_vectors(catalog, width=1000)
    # The least singular vector is left out, and this table has some that say nothing at all.
    np.testing.assert_allclose(cosines(vectors_IR), cosines(table_IW), atol=1e-4)


def test_words_are_counted_whatever_their_case_or_marks() -> None:
    titles = ["Léon: The Professional", "léon the professional!", "Heat (1995)", "Alien", "Aliens"]
    cosine_II = cosines(word_vectors(catalog_of(titles), width=4))
    assert cosine_II[0, 1] == pytest.approx(1, abs=1e-5)


def test_titles_without_words_are_refused() -> None:
    with pytest.raises(UserError, match="too few words"):
        word_vectors(catalog_of(["!", "?"]))


@pytest.mark.skipif(not STORIES.exists(), reason="the model stories260K is not here")
def test_a_language_models_vectors_are_its_mean_states_whitened() -> None:
    titles = [f"The {what} went to the {where}" for what in "abcdefgh" for where in ("sea", "wood")]
    vectors_IR = language_model_vectors(catalog_of(titles), str(STORIES), width=6)
    assert vectors_IR.shape == (len(titles), 6)
    np.testing.assert_allclose(vectors_IR.T @ vectors_IR / len(titles), np.eye(6), atol=1e-3)
    # One title on its own, through a model cut by hand, lies where the mean says.
    model, tokenizer = load(str(STORIES))
    half = model.config.num_layers // 2
    assert tokenizer is not None
    states = []
    for title in titles:
        tokens_1T = tokenizer.encode(title)[None]
        hidden_TD = layers_of(model, tokens_1T, half)
        states.append(hidden_TD.mean(axis=0))
    centred_ID = np.array(states) - np.mean(states, axis=0)
    left_IR, *_ = np.linalg.svd(centred_ID, full_matrices=False)
    projected = np.abs((left_IR[:, :6] * vectors_IR).sum(axis=0)) / len(titles) ** 0.5
    np.testing.assert_allclose(projected, 1, atol=1e-3)


def layers_of(model: Llama, tokens_1T: np.ndarray, count: int) -> np.ndarray:
    """The normed states [T, D] behind the first layers, one layer after the other."""
    import jax  # noqa: PLC0415
    from flax import nnx  # noqa: PLC0415

    from palr_jax.llm.attention import attend  # noqa: PLC0415
    from palr_jax.llm.rope import rope_turns  # noqa: PLC0415

    length = jnp.array([tokens_1T.shape[1]])
    layout = causal_layout(length, tokens_1T.shape[1])
    turns = rope_turns(layout.position_BT, model.config)
    x_ND = model.embedding_VD[...][tokens_1T[0]]
    graph, stacked = nnx.split(model.layers)
    for layer in range(count):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, at=layer: leaf[at], stacked))
        q_BTHK, k_BTGK, v_BTGK = block.heads(x_ND, turns)
        x_ND = block.finish(x_ND, attend(q_BTHK, k_BTGK, v_BTGK, layout.horizon_BT))
    return np.asarray(model.norm(x_ND))
