import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.ragged import Ragged
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.rows import Rows, inference_rows
from palr_jax.retrieval.sasrec import SASRec

ITEMS, T = 20, 6
CONFIG = RetrieverConfig(dim=8, num_blocks=2, num_heads=2, length=T, dropout=0.5)


def network() -> SASRec:
    return SASRec(CONFIG, ITEMS, nnx.Rngs(0))


def rows_of(items: list[list[int]], positions: list[list[int]]) -> Rows:
    item_RT = np.array(items, np.int32)
    return Rows(item_RT, np.array(positions, np.int32), np.zeros_like(item_RT))


def test_a_token_sees_nothing_after_it() -> None:
    places = [[0, 1, 2, 3, 4, 5]]
    early = network()(rows_of([[20, 1, 2, 3, 4, 5]], places), None)
    late = network()(rows_of([[20, 1, 2, 9, 9, 9]], places), None)
    np.testing.assert_allclose(early[:, :3], late[:, :3], atol=1e-6)
    assert (jnp.abs(early[:, 3:] - late[:, 3:]).max(-1) > 1e-4).all()


def test_a_token_sees_all_of_its_piece() -> None:
    places = [[0, 1, 2, 3, 4, 5]]
    one = network()(rows_of([[20, 1, 2, 3, 4, 5]], places), None)
    other = network()(rows_of([[19, 1, 2, 3, 4, 5]], places), None)
    assert (jnp.abs(one - other).max(-1) > 1e-5).all()


def test_pieces_of_a_row_do_not_see_each_other() -> None:
    packed = network()(rows_of([[3, 4, 20, 7, 8, 9]], [[0, 1, 0, 1, 2, 3]]), None)
    first = network()(rows_of([[3, 4, 1, 1, 1, 1]], [[0, 1, 2, 3, 4, 5]]), None)
    second = network()(rows_of([[20, 7, 8, 9, 1, 1]], [[0, 1, 2, 3, 4, 5]]), None)
    np.testing.assert_allclose(packed[:, :2], first[:, :2], atol=1e-6)
    np.testing.assert_allclose(packed[:, 2:], second[:, :4], atol=1e-6)


def test_using_the_network_gives_what_training_saw() -> None:
    used = network()(inference_rows(Ragged.from_rows([[7, 8, 9], []]), ITEMS, T), None)[:, -1]
    trained = network()(rows_of([[20, 7, 8, 9, 1, 1]], [[0, 1, 2, 3, 0, 1]]), None)
    np.testing.assert_allclose(used[0], trained[0, 3], atol=1e-6)
    np.testing.assert_allclose(used[1], trained[0, 0], atol=1e-6)


def test_dropout_follows_its_key() -> None:
    rows = rows_of([[20, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]])
    model = network()
    one, two = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(model(rows, one), model(rows, one))
    assert (model(rows, one) != model(rows, two)).any()
    assert (model(rows, one) != model(rows, None)).any()


def test_every_parameter_learns() -> None:
    graph, params = nnx.split(network(), nnx.Param)
    rows = rows_of([[20, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]])

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graph, params)
        return jnp.sum(jnp.tanh(model(rows, None) @ model.output_items().T))

    gradients = jax.grad(loss)(params)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_the_start_token_is_not_an_item() -> None:
    assert network().output_items().shape == (ITEMS, CONFIG.dim)
