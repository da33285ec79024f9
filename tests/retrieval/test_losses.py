import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from palr_jax.retrieval import losses
from palr_jax.retrieval.config import LossKind
from palr_jax.retrieval.losses import NO_TARGET, cross_entropy
from palr_jax.retrieval.pairwise import PairLoss

N, D, ITEMS = 1303, 8, 97  # more than a chunk, and no multiple of one


def plain(hidden_ND: jax.Array, item_ID: jax.Array, target_N: jax.Array) -> jax.Array:
    score_NI = hidden_ND @ item_ID.T
    loss_N = optax.softmax_cross_entropy_with_integer_labels(score_NI, jnp.maximum(target_N, 0))
    used_N = target_N != NO_TARGET
    return jnp.sum(jnp.where(used_N, loss_N, 0)) / jnp.sum(used_N)


def arrays(seed: int, share: float = 0.7) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    target_N = np.where(rng.random(N) < share, rng.integers(0, ITEMS, N), NO_TARGET)
    return (
        jnp.asarray(rng.normal(size=(N, D)), jnp.float32),
        jnp.asarray(rng.normal(size=(ITEMS, D)), jnp.float32),
        jnp.asarray(target_N, jnp.int32),
    )


@pytest.mark.parametrize("share", [1.0, 0.7, 0.01])
def test_loss_and_gradients_are_those_of_the_plain_softmax(share: float) -> None:
    hidden_ND, item_ID, target_N = arrays(0, share)
    value, gradients = jax.value_and_grad(cross_entropy, (0, 1))(hidden_ND, item_ID, target_N)
    expected, expected_gradients = jax.value_and_grad(plain, (0, 1))(hidden_ND, item_ID, target_N)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_gradients_scale_with_what_is_done_to_the_loss() -> None:
    hidden_ND, item_ID, target_N = arrays(1)
    once = jax.grad(cross_entropy, (0, 1))(hidden_ND, item_ID, target_N)
    thrice = jax.grad(lambda *args: 3 * cross_entropy(*args), (0, 1))(hidden_ND, item_ID, target_N)
    for single, triple in zip(once, thrice, strict=True):
        np.testing.assert_allclose(triple, 3 * single, rtol=1e-5, atol=1e-7)


def test_fewer_positions_than_a_chunk() -> None:
    hidden_ND, item_ID, _ = arrays(2)
    few = (hidden_ND[:5], item_ID, jnp.array([3, NO_TARGET, 0, 96, 3]))
    np.testing.assert_allclose(cross_entropy(*few), plain(*few), rtol=1e-5)


def test_positions_without_target_do_not_count_whatever_they_hold() -> None:
    hidden_ND, item_ID, target_N = arrays(3)
    junk_ND = jnp.where((target_N == NO_TARGET)[:, None], 1e6, hidden_ND)
    expected = cross_entropy(hidden_ND, item_ID, target_N)
    value, gradient_ND = jax.value_and_grad(cross_entropy)(junk_ND, item_ID, target_N)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not gradient_ND[target_N == NO_TARGET].any()


def test_no_target_at_all_is_no_loss() -> None:
    hidden_ND, item_ID, _ = arrays(4)
    none_N = jnp.full(N, NO_TARGET)
    value, gradients = jax.value_and_grad(cross_entropy, (0, 1))(hidden_ND, item_ID, none_N)
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


def test_large_scores_do_not_overflow() -> None:
    hidden_ND, item_ID, target_N = arrays(5)
    value, gradient_ND = jax.value_and_grad(cross_entropy)(1e4 * hidden_ND, item_ID, target_N)
    np.testing.assert_allclose(value, plain(1e4 * hidden_ND, item_ID, target_N), rtol=1e-5)
    assert jnp.isfinite(gradient_ND).all()


def test_the_scores_of_all_positions_never_exist_at_once() -> None:
    def program(loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> str:
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays(0)).compile()
        text = compiled.as_text()
        assert text is not None
        return text

    def rows_of_scores(text: str) -> int:
        return max(int(rows) for rows in re.findall(rf"f32\[(\d+),{ITEMS}\]", text))

    assert rows_of_scores(program(plain)) == N
    assert rows_of_scores(program(cross_entropy)) <= losses._CHUNK < N


def test_losses_with_negatives_are_those_of_their_formulas() -> None:
    wanted, other = np.array([0.5, -1.0]), np.array([[0.2, 1.0, -3.0], [0.0, -0.4, 2.0]])

    def log_sigmoid(x: np.ndarray) -> np.ndarray:
        return -np.log1p(np.exp(-x))

    bce = -log_sigmoid(wanted) - log_sigmoid(-other).sum(1)
    bpr = -log_sigmoid(wanted[:, None] - other).mean(1)
    share = 3 / (ITEMS - 1)
    power = share * (0.75 * (1 - 1 / share) + 1 / share)
    gbce = -power * log_sigmoid(wanted) - log_sigmoid(-other).sum(1)
    cases: list[tuple[PairLoss, np.ndarray]] = [("bce", bce), ("bpr", bpr), ("gbce", gbce)]
    for kind, expected in cases:
        found = losses.compare(kind, jnp.array(wanted), jnp.array(other), ITEMS)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_negative_that_is_the_target_does_not_count() -> None:
    wanted, other = jnp.array([0.5]), jnp.array([[0.2, -jnp.inf]])
    for kind in ("bce", "gbce"):
        with_it = losses.compare(kind, wanted, other, 3)
        power = 1.0 if kind == "bce" else 0.75 * (1 - 1) + 1
        expected = power * jax.nn.softplus(-0.5) + jax.nn.softplus(0.2)
        np.testing.assert_allclose(with_it[0], expected, rtol=1e-6)


def test_a_sampled_softmax_comes_near_to_the_softmax() -> None:
    hidden_ND, item_ID, target_N = arrays(4)
    exact = cross_entropy(hidden_ND, item_ID, target_N)
    loss = losses.Loss("sampled_softmax", 5000)
    found = losses.loss_of(loss, hidden_ND, item_ID, target_N, jax.random.key(0))
    np.testing.assert_allclose(found, exact, rtol=0.01)


@pytest.mark.parametrize("kind", ["cross_entropy", "sampled_softmax", "bce", "gbce", "bpr"])
def test_every_loss_leaves_out_positions_without_target_and_can_be_learned(kind: LossKind) -> None:
    hidden_ND, item_ID, target_N = arrays(5)
    loss, key = losses.Loss(kind, 4), jax.random.key(1)
    junk_ND = jnp.where((target_N == NO_TARGET)[:, None], 50.0, hidden_ND)
    value, gradient_ND = jax.value_and_grad(losses.loss_of, 1)(
        loss, junk_ND, item_ID, target_N, key
    )
    np.testing.assert_allclose(
        value, losses.loss_of(loss, hidden_ND, item_ID, target_N, key), rtol=1e-5
    )
    assert not gradient_ND[target_N == NO_TARGET].any()
    better = losses.loss_of(loss, hidden_ND - 50 * gradient_ND, item_ID, target_N, key)
    assert better < losses.loss_of(loss, hidden_ND, item_ID, target_N, key)
