"""Properties of all networks that read histories in order, and references of each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from palr_jax.ragged import Ragged
from palr_jax.retrieval.bert4rec import BERT4Rec
from palr_jax.retrieval.caser import Caser
from palr_jax.retrieval.config import BlockKind, RetrieverConfig
from palr_jax.retrieval.gru4rec import GRU4Rec
from palr_jax.retrieval.hstu import HSTU
from palr_jax.retrieval.rows import NEXT_ITEM, HistoryRows
from palr_jax.retrieval.sasrec import SASRec
from palr_jax.retrieval.transformer import TransformerBlock, attend
from palr_jax.trees import State
from tests.programs import forward

ITEMS, T = 20, 6
CONFIG = RetrieverConfig(dim=8, num_blocks=2, num_heads=2, length=T, dropout=0.5)


def sasrec_of_bert(config: RetrieverConfig, num_items: int, rngs: nnx.Rngs) -> SASRec:
    return SASRec(replace(config, block="bert"), num_items, rngs)


Made = Callable[[RetrieverConfig, int, nnx.Rngs], Any]
NETWORKS: list[Made] = [BERT4Rec, Caser, GRU4Rec, HSTU, SASRec, sasrec_of_bert]
CAUSAL: list[Made] = [Caser, GRU4Rec, HSTU, SASRec, sasrec_of_bert]
ONE_PIECE = [[0, 1, 2, 3, 4, 5]]

every = pytest.mark.parametrize("made", NETWORKS, ids=lambda made: made.__name__)
causal = pytest.mark.parametrize("made", CAUSAL, ids=lambda made: made.__name__)


def use(made: Made, items: list[list[int]], positions: list[list[int]]) -> jax.Array:
    return forward(made(CONFIG, ITEMS, nnx.Rngs(0)), rows_of(items, positions), None)


def rows_of(items: list[list[int]], positions: list[list[int]]) -> HistoryRows:
    item_RT = np.array(items, np.int32)
    return HistoryRows(item_RT, np.array(positions, np.int32), np.zeros_like(item_RT))


@causal
def test_a_token_sees_nothing_after_it(made: Made) -> None:
    early = use(made, [[20, 1, 2, 3, 4, 5]], ONE_PIECE)
    late = use(made, [[20, 1, 2, 9, 9, 9]], ONE_PIECE)
    np.testing.assert_allclose(early[:, :3], late[:, :3], atol=1e-6)
    assert (jnp.abs(early[:, 3:] - late[:, 3:]).max(-1) > 1e-5).all()


def test_bert4rec_sees_what_comes_after() -> None:
    one = use(BERT4Rec, [[20, 1, 2, 3, 4, 5]], ONE_PIECE)
    other = use(BERT4Rec, [[20, 1, 2, 3, 4, 9]], ONE_PIECE)
    assert (jnp.abs(one - other).max(-1) > 1e-5).all()


@every
def test_the_last_token_sees_all_of_its_piece(made: Made) -> None:
    if made is Caser:
        pytest.skip("sees a window")
    one = use(made, [[20, 1, 2, 3, 4, 5]], ONE_PIECE)
    other = use(made, [[19, 1, 2, 3, 4, 5]], ONE_PIECE)
    assert jnp.abs(one - other)[0, -1].max() > 1e-6


@every
def test_pieces_of_a_row_do_not_see_each_other(made: Made) -> None:
    row = [[3, 4, 20, 7, 8, 9]]
    packed = use(made, row, [[0, 1, 0, 1, 2, 3]])
    first = use(made, [[3, 4, 1, 1, 1, 1]], [[0, 1, 0, 1, 2, 3]])
    second = use(made, [[1, 1, 20, 7, 8, 9]], [[0, 1, 0, 1, 2, 3]])
    np.testing.assert_allclose(packed[:, :2], first[:, :2], atol=1e-6)
    np.testing.assert_allclose(packed[:, 2:], second[:, 2:], atol=1e-6)


@every
def test_the_newest_alone_are_those_of_all(made: Made) -> None:
    model = made(CONFIG, ITEMS, nnx.Rngs(0))
    rows = rows_of([[20, 1, 2, 3, 4, 5], [3, 4, 20, 7, 8, 9]], [*ONE_PIECE, [0, 1, 0, 1, 2, 3]])
    newest, whole = forward(model, rows, None, newest=2), forward(model, rows, None)
    np.testing.assert_allclose(newest, whole[:, -2:], atol=1e-5)


@every
@pytest.mark.parametrize("init_std", [0.02, 0.1])
def test_embeddings_begin_as_wide_as_is_asked(made: Made, init_std: float) -> None:
    model = made(replace(CONFIG, init_std=init_std), 2000, nnx.Rngs(0))
    assert jnp.std(model.item_ID[...]) == pytest.approx(init_std, rel=0.05)


@causal
def test_using_the_network_gives_what_training_saw(made: Made) -> None:
    model = made(CONFIG, ITEMS, nnx.Rngs(0))
    rows = NEXT_ITEM.inference(Ragged.from_rows([[7, 8, 9], []]), ITEMS, T)
    used = forward(model, rows, None)[:, -1]
    trained = use(made, [[20, 7, 8, 9, 1, 1]], [[0, 1, 2, 3, 0, 1]])
    np.testing.assert_allclose(used[0], trained[0, 3], atol=1e-6)
    np.testing.assert_allclose(used[1], trained[0, 0], atol=1e-6)


@every
def test_dropout_follows_its_key(made: Made) -> None:
    rows, model = rows_of([[20, 1, 2, 3, 4, 5]], ONE_PIECE), made(CONFIG, ITEMS, nnx.Rngs(0))
    one, two = jax.random.key(1), jax.random.key(2)
    dropped = forward(model, rows, one)
    np.testing.assert_array_equal(forward(model, rows, one), dropped)
    assert (dropped != forward(model, rows, two)).any()
    assert (dropped != forward(model, rows, None)).any()


@every
def test_every_parameter_learns(made: Made) -> None:
    graph, params = nnx.split(made(CONFIG, ITEMS, nnx.Rngs(0)), nnx.Param)
    rows = rows_of([[20, 1, 2, 3, 4, 5]], ONE_PIECE)

    @jax.jit
    @jax.grad
    def gradient(params: State) -> jax.Array:
        model = nnx.merge(graph, params)
        return jnp.sum(jnp.tanh(model(rows, None) @ model.output_items().T))

    assert all(leaf.any() for leaf in jax.tree.leaves(gradient(params)))


@every
def test_the_start_token_is_not_an_item(made: Made) -> None:
    assert made(CONFIG, ITEMS, nnx.Rngs(0)).output_items().shape == (ITEMS, CONFIG.dim)


def test_sasrec_reads_scaled_items_and_scores_by_those_that_are_not() -> None:
    model = SASRec(replace(CONFIG, input_scale=8.0), ITEMS, nnx.Rngs(0))
    plain = SASRec(CONFIG, ITEMS, nnx.Rngs(0))
    np.testing.assert_array_equal(model.output_items(), plain.output_items())
    rows = rows_of([[20, 1, 2, 3, 4, 5]], ONE_PIECE)
    scaled = forward(model, rows, None)
    plain.item_ID[...] = 8.0 * plain.item_ID[...]
    np.testing.assert_allclose(scaled, forward(plain, rows, None), atol=1e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_gru_is_that_of_its_equations() -> None:
    config = RetrieverConfig(dim=4, num_blocks=1, length=T)
    model = GRU4Rec(config, ITEMS, nnx.Rngs(1))
    (layer,) = model.layers
    weights = [np.asarray(layer.input.kernel[...]), np.asarray(layer.recurrent.kernel[...])]
    state_D, expected = np.zeros(4), []
    for item in [20, 3, 4]:
        x_G = np.asarray(model.item_ID[...])[item] @ weights[0]
        h_G = state_D @ weights[1]  # the biases are zero at first
        reset_D, update_D = sigmoid(x_G[:4] + h_G[:4]), sigmoid(x_G[4:8] + h_G[4:8])
        new_D = np.tanh(x_G[8:] + reset_D * h_G[8:])
        state_D = update_D * state_D + (1 - update_D) * new_D
        expected.append(state_D @ np.asarray(model.out.kernel[...]))
    found = forward(model, rows_of([[20, 3, 4]], [[0, 1, 2]]), None)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_caser_is_that_of_its_equations() -> None:
    config = RetrieverConfig(dim=4, length=T)
    model = Caser(config, ITEMS, nnx.Rngs(1))
    items, expected = [20, 3, 4, 7, 8, 9], []
    vectors_TD = np.asarray(model.item_ID[...])[items]
    for now in range(len(items)):
        window_LD = np.concatenate([np.zeros((5, 4)), vectors_TD])[now + 1 : now + 6]
        found = []
        for kernel in model.across_HDF:
            kernel_HDF = np.asarray(kernel[...])
            height = len(kernel_HDF)
            response_OF = [
                np.einsum("hd,hdf->f", window_LD[offset : offset + height], kernel_HDF)
                for offset in range(6 - height)
            ]
            found.append(np.maximum(np.max(response_OF, axis=0), 0))
        found.append((window_LD.T @ np.asarray(model.down_LF[...])).T.reshape(-1))
        joined_D = np.concatenate(found) @ np.asarray(model.join.kernel[...])
        expected.append(np.maximum(joined_D, 0))
    found_TD = forward(model, rows_of([items], ONE_PIECE), None)[0]
    np.testing.assert_allclose(found_TD, expected, atol=1e-5)


def test_hstu_is_that_of_its_equations() -> None:
    model = HSTU(replace(CONFIG, init_std=0.5), ITEMS, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    items = [20, 3, 4, 7, 8, 9]
    x_TD = values(model.item_ID)[items].astype(np.float64) + values(model.position_TD)

    def silu(x: np.ndarray) -> np.ndarray:
        return x * sigmoid(x)

    for block in model.blocks:
        block.bias_HT[...] = jnp.asarray(rng.normal(size=(2, T)), jnp.float32)
        bias_HT = values(block.bias_HT)
        parts = silu(normal(block.norm, x_TD) @ values(block.uvqk.kernel))
        gate_TD, value_TD, query_TD, key_TD = np.split(parts, 4, axis=1)
        mixed_TD = np.zeros_like(x_TD)
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            for now in range(T):
                for seen in range(now + 1):
                    score = query_TD[now, part] @ key_TD[seen, part] + bias_HT[head, now - seen]
                    mixed_TD[now, part] += silu(score) * value_TD[seen, part] / (now + 1)
        x_TD = x_TD + (normal(block.mixed_norm, mixed_TD) * gate_TD) @ values(block.out.kernel)
    found = forward(model, rows_of([items], ONE_PIECE), None)[0]
    np.testing.assert_allclose(found, normal(model.norm, x_TD), atol=1e-4)


@pytest.mark.parametrize("block", ["sasrec", "bert"])
def test_sasrec_is_what_numpy_makes_of_its_parameters(block: BlockKind) -> None:
    config = replace(CONFIG, block=block, init_std=0.5)
    model = SASRec(config, ITEMS, nnx.Rngs(0))
    items = [20, 1, 2, 3, 4, 5]
    found = forward(model, rows_of([items], ONE_PIECE), None)[0]
    np.testing.assert_allclose(found, reference(model, items, block == "sasrec"), atol=1e-5)


def values(parameter: nnx.Param[jax.Array] | None) -> np.ndarray:
    assert parameter is not None
    return np.asarray(parameter[...])


def normal(norm: nnx.LayerNorm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * values(norm.scale) + values(norm.bias)


def reference(model: SASRec, items: list[int], norm_first: bool) -> np.ndarray:
    """SASRec on one history, a query and a head at a time: [T, D]."""

    def attention(block: TransformerBlock, x: np.ndarray) -> np.ndarray:
        q, k, v = np.split(x @ np.asarray(block.qkv.kernel[...], np.float64), 3, axis=-1)
        mixed, width = np.zeros_like(x), x.shape[1] // block.num_heads
        for head in range(block.num_heads):
            part = slice(head * width, (head + 1) * width)
            for query in range(len(x)):
                weight = np.exp(k[: query + 1, part] @ q[query, part] / width**0.5)
                mixed[query, part] = weight @ v[: query + 1, part] / weight.sum()
        return mixed @ np.asarray(block.out.kernel[...])

    def feed_forward(block: TransformerBlock, x: np.ndarray) -> np.ndarray:
        x = x @ values(block.up.kernel) + values(block.up.bias)
        tanh = np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))
        x = np.maximum(x, 0) if norm_first else x * (1 + tanh) / 2
        return x @ values(block.down.kernel) + values(block.down.bias)

    x = np.asarray(model.item_ID[...], np.float64)[items] + np.asarray(model.position_TD[...])
    if not norm_first:
        x = normal(model.norm, x)
    for block in model.blocks:
        if norm_first:
            x = x + attention(block, normal(block.attention_norm, x))
            x = x + feed_forward(block, normal(block.mlp_norm, x))
        else:
            x = normal(block.attention_norm, x + attention(block, x))
            x = normal(block.mlp_norm, x + feed_forward(block, x))
    return normal(model.norm, x) if norm_first else x


def test_dropped_keys_leave_the_mean_of_attention() -> None:
    q_BHQW, k_BHTW = (jax.random.normal(jax.random.key(n), (1, 2, 5, 4)) for n in (0, 1))
    v_BHTW, position_BT = jax.random.normal(jax.random.key(2), (1, 2, 5, 4)), jnp.arange(5)[None]
    whole = attend(q_BHQW, k_BHTW, v_BHTW, position_BT, True)

    @jax.vmap
    def dropped(key: jax.Array) -> jax.Array:
        return attend(q_BHQW, k_BHTW, v_BHTW, position_BT, True, dropout=0.4, key=key)

    many = dropped(jax.random.split(jax.random.key(3), 4000))
    assert jnp.std(many[:, 0, 0, 4, 0]) > 0.1
    # The first query sees one key: it is dropped, or weighs 1 / 0.6.
    kept = jnp.abs(many[:, 0, 0, 0, 0]) > 0
    assert jnp.mean(kept) == pytest.approx(0.6, abs=5 * (0.24 / 4000) ** 0.5)
    np.testing.assert_allclose(
        many[kept, 0, 0, 0] * 0.6, whole[None, 0, 0, 0].repeat(kept.sum(), 0), rtol=1e-5
    )
    error = 5 * jnp.std(many, axis=0) / 4000**0.5
    assert (jnp.abs(many.mean(0) - whole) <= error + 1e-6).all()
