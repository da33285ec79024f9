"""Losses of the retrievers.

Shapes: N positions, C positions of a chunk, K negatives.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from palr_jax.retrieval.config import LossKind

NO_TARGET = -1
"""Target of a position without a prediction."""

_CHUNK = 400  # maximum number of positions scored together; measured fastest on CPU


class Loss(NamedTuple):
    """The loss and its number of negatives; see `RetrieverConfig`."""

    kind: LossKind
    negatives: int


class Sampled(NamedTuple):
    """The items that a loss compares: ids, or rows of a table.

    Attributes:
        target_N: the target of each position, or NO_TARGET.
        negative: sampled items: [K], shared by all positions, for sampled_softmax, else [N, K].
    """

    target_N: jax.Array
    negative: jax.Array


def loss_of(
    loss: Loss, hidden_ND: jax.Array, item_ID: jax.Array, target_N: jax.Array, key: jax.Array
) -> jax.Array:
    """The chosen loss, averaged over the positions that have a target; `key` samples negatives."""
    if loss.kind == "cross_entropy":
        return cross_entropy(hidden_ND, item_ID, target_N)
    items = sample(loss, target_N, len(item_ID), key)
    return sampled_loss(loss, hidden_ND, item_ID, items, items, len(item_ID))


def sample(loss: Loss, target_N: jax.Array, num_items: int, key: jax.Array) -> Sampled:
    """Negatives, drawn uniformly from the catalog.

    sampled_softmax needs many, so the whole batch shares them; the other losses sample per
    position.
    """
    shared = loss.kind == "sampled_softmax"
    shape = (loss.negatives,) if shared else (len(target_N), loss.negatives)
    return Sampled(target_N, jax.random.randint(key, shape, 0, num_items))


def sampled_loss(
    loss: Loss,
    hidden_ND: jax.Array,
    item_ID: jax.Array,
    rows: Sampled,
    ids: Sampled,
    num_items: int,
) -> jax.Array:
    """A loss that compares the target with sampled negatives, averaged as in `loss_of`.

    Args:
        loss: any but cross_entropy.
        hidden_ND: predictions.
        item_ID: a table that holds at least the vectors of `ids`.
        rows: where they are in the table.
        ids: the items.
        num_items: size of the catalog.
    """
    if loss.kind == "sampled_softmax":
        return _sampled_softmax(hidden_ND, item_ID, rows, ids, num_items)
    assert loss.kind != "cross_entropy"
    wanted_N = jnp.einsum("nd,nd->n", hidden_ND, item_ID[rows.target_N])
    other_NK = jnp.einsum("nd,nkd->nk", hidden_ND, item_ID[rows.negative])
    other_NK = jnp.where(ids.negative == ids.target_N[:, None], -jnp.inf, other_NK)
    loss_N = compare(loss.kind, wanted_N, other_NK, num_items)
    return _mean(loss_N, ids.target_N)


def compare(
    kind: Literal["bce", "gbce", "bpr"], wanted_N: jax.Array, other_NK: jax.Array, num_items: int
) -> jax.Array:
    """The loss of each position from the scores of its target and its negatives: [N].

    A negative with the score -inf adds nothing to the loss.

    Args:
        kind: bce is binary cross-entropy; gbce raises the probability of the target to a power
            that corrects for the few negatives (Petrov and Macdonald 2023, gSASRec, equation 6,
            with their t = 0.75); bpr is the mean log-sigmoid of differences (Rendle et al. 2009).
        wanted_N: scores of the targets.
        other_NK: scores of the negatives.
        num_items: size of the catalog.
    """
    if kind == "bpr":
        return jax.nn.softplus(other_NK - wanted_N[:, None]).mean(-1)
    power = 1.0
    if kind == "gbce":
        drawn, calibration = other_NK.shape[1] / max(num_items - 1, 1), 0.75
        power = drawn * (calibration * (1 - 1 / drawn) + 1 / drawn)
    return power * jax.nn.softplus(-wanted_N) + jax.nn.softplus(other_NK).sum(-1)


def _sampled_softmax(
    hidden_ND: jax.Array, item_ID: jax.Array, rows: Sampled, ids: Sampled, num_items: int
) -> jax.Array:
    """Cross-entropy against the K sampled items (Jean et al. 2015)."""
    # Each sampled item represents I / K items of the catalog.
    share = jnp.log(num_items / len(ids.negative))
    other_NK = hidden_ND @ item_ID[rows.negative].T + share
    other_NK = jnp.where(ids.negative == ids.target_N[:, None], -jnp.inf, other_NK)
    wanted_N = jnp.einsum("nd,nd->n", hidden_ND, item_ID[rows.target_N])
    highest_N = jnp.maximum(wanted_N, other_NK.max(-1))
    sum_N = jnp.exp(wanted_N - highest_N) + jnp.exp(other_NK - highest_N[:, None]).sum(-1)
    return _mean(jnp.log(sum_N) + highest_N - wanted_N, ids.target_N)


def _mean(loss_N: jax.Array, target_N: jax.Array) -> jax.Array:
    used_N = target_N != NO_TARGET
    return jnp.sum(jnp.where(used_N, loss_N, 0)) / jnp.maximum(jnp.sum(used_N), 1)


@jax.custom_vjp
def cross_entropy(hidden_ND: jax.Array, item_ID: jax.Array, target_N: jax.Array) -> jax.Array:
    """Mean over positions with a target of -log softmax(hidden · items)[target], a scalar.

    The softmax is over the whole catalog, but only one chunk of positions is scored at a time, and
    positions without a target are skipped. The gradients are computed in the same pass as the loss,
    because the gradient upstream of a scalar loss only scales them: no score is computed twice.
    """
    return _forward(hidden_ND, item_ID, target_N)[0]


def _forward(
    hidden_ND: jax.Array, item_ID: jax.Array, target_N: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The loss and its gradients with respect to `hidden_ND` and `item_ID`."""
    # Chunks of one size with the least padding: 500 positions are 2 x 250, not 2 x 400.
    chunk = -(-len(target_N) // -(-len(target_N) // _CHUNK))
    padding = -len(target_N) % chunk
    # Positions with a target come first, so that the loop can stop after them.
    order_N = jnp.argsort(target_N == NO_TARGET, stable=True)
    order_N = jnp.pad(order_N, (0, padding), constant_values=len(target_N))
    take = functools.partial(jnp.take, indices=order_N, axis=0, mode="fill")
    sorted_ND, sorted_N = take(hidden_ND, fill_value=0), take(target_N, fill_value=NO_TARGET)
    count = jnp.maximum(jnp.sum(target_N != NO_TARGET), 1)
    weight_N = (sorted_N != NO_TARGET) / count

    def add_chunk(
        index: jax.Array, sums: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        loss, hidden_grad_ND, item_grad_ID = sums

        def part(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk)

        hidden_CD, target_C, weight_C = part(sorted_ND), part(sorted_N), part(weight_N)
        score_CI = hidden_CD @ item_ID.T
        highest_C1 = jnp.max(score_CI, axis=1, keepdims=True)
        exp_CI = jnp.exp(score_CI - highest_C1)
        sum_C1 = jnp.sum(exp_CI, axis=1, keepdims=True)
        wanted_CD = item_ID[target_C]
        log_sum_C = (jnp.log(sum_C1) + highest_C1)[:, 0]
        loss_C = log_sum_C - jnp.sum(hidden_CD * wanted_CD, axis=1)
        # Dividing [C, D] by the softmax's denominator instead of [C, I] saves a pass over scores.
        share_C1 = weight_C[:, None] / sum_C1
        hidden_grad_CD = (exp_CI @ item_ID) * share_C1 - weight_C[:, None] * wanted_CD
        # On CPU, transposing first and then multiplying is faster than a product that transposes;
        # the barrier stops XLA from fusing the two.
        exp_IC = jax.lax.optimization_barrier(exp_CI.T)
        item_grad_ID += exp_IC @ (hidden_CD * share_C1)
        return (
            loss + jnp.sum(loss_C * weight_C),
            jax.lax.dynamic_update_slice_in_dim(
                hidden_grad_ND, hidden_grad_CD, index * chunk, axis=0
            ),
            item_grad_ID,
        )

    start = (jnp.zeros(()), jnp.zeros_like(sorted_ND), jnp.zeros_like(item_ID))
    loss, hidden_grad_ND, item_grad_ID = jax.lax.fori_loop(0, -(-count // chunk), add_chunk, start)
    item_grad_ID = item_grad_ID.at[sorted_N].add(-weight_N[:, None] * sorted_ND)
    unsorted_ND = jnp.zeros_like(hidden_ND).at[order_N].set(hidden_grad_ND, mode="drop")
    return loss, (unsorted_ND, item_grad_ID)


def _backward(
    gradients: tuple[jax.Array, jax.Array], upstream: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    hidden_grad_ND, item_grad_ID = gradients
    return hidden_grad_ND * upstream, item_grad_ID * upstream, None


cross_entropy.defvjp(_forward, _backward)
