"""One training step of the retrievers.

Letters: B rows of a batch, T places of a row, D width, N positions, I items.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from palr_jax.retrieval.losses import Loss, loss_of
from palr_jax.retrieval.rows import Rows

Params = Any
"""Nested dicts of arrays."""


class Network(Protocol):
    """What a Flax NNX module that reads histories in order has to do to be trained here."""

    def __call__(self, rows: Rows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """What belongs to each token, as a vector to compare with items: [B, T, D].

        Args:
            rows: the tokens.
            key: of dropout; None for none.
            newest: if not 0, only that many columns at the right end are wanted.
        """

    def output_items(self) -> jax.Array:
        """The vectors of the items, whose inner products with the former are scores: [I, D]."""


class Rates(NamedTuple):
    """How far a step goes; see `RetrieverConfig`. Arguments, so that no value is compiled in."""

    learning_rate: jax.typing.ArrayLike
    weight_decay: jax.typing.ArrayLike
    averaging: jax.typing.ArrayLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a training step changes.

    Attributes:
        params: the parameters.
        average: their running average, which is what recommends: it is better than they are, and
            less noisy from epoch to epoch.
        moments: the state of AdamW.
    """

    params: Params
    average: Params
    moments: optax.OptState

    @classmethod
    def initial(cls, params: Params) -> "TrainState":
        """The state before the first step; it shares no memory with `params`."""
        return cls(copy(params), copy(params), optax.adamw(0.0).init(params))

    def after(self, gradient: Params, rates: Rates) -> "TrainState":
        """The state one update later."""
        optimizer = optax.adamw(rates.learning_rate, weight_decay=rates.weight_decay)
        update, moments = optimizer.update(gradient, self.moments, self.params)
        params = optax.apply_updates(self.params, update)
        average = optax.incremental_update(params, self.average, 1 - rates.averaging)
        return TrainState(params, average, moments)


@functools.partial(jax.jit, static_argnames=("graph", "loss"), donate_argnames="state")
def train_step(
    graph: nnx.GraphDef, loss: Loss, rates: Rates, state: TrainState, rows: Rows, key: jax.Array
) -> tuple[TrainState, jax.Array]:
    """One update of a `Network`, and the loss before it. The memory of `state` is taken over.

    Args:
        graph: of the network.
        loss: what to minimise.
        rates: how far to go.
        state: what to change.
        rows: a batch.
        key: of dropout and of drawn items.
    """
    dropout_key, negatives_key = jax.random.split(key)

    def loss_at(params: Params) -> jax.Array:
        network: Network = nnx.merge(graph, params)
        hidden_BTD = network(rows, dropout_key)
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        target_N = jnp.asarray(rows.target_RT).reshape(-1)
        return loss_of(loss, hidden_ND, network.output_items(), target_N, negatives_key)

    value, gradient = jax.value_and_grad(loss_at)(state.params)
    return state.after(gradient, rates), value


def copy(tree: Params) -> Params:
    """The same values in memory of their own."""
    return jax.tree.map(jnp.copy, tree)
