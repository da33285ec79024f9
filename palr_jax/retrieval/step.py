"""One training step of the retrievers.

Over several devices, each takes some rows of the batch and keeps a part of every item's vector, of
its average and of its moments; the vectors are put together for the step.

Letters: B rows of a batch, T places of a row, D width, N positions, I items.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from palr_jax.parallel.sharding import Shards
from palr_jax.retrieval.losses import NO_TARGET, Loss, loss_of
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


@functools.partial(jax.jit, static_argnames=("graph", "loss", "shards"), donate_argnames="state")
def train_step(
    graph: nnx.GraphDef,
    loss: Loss,
    rates: Rates,
    state: TrainState,
    rows: Rows,
    key: jax.Array,
    shards: Shards | None = None,
) -> tuple[TrainState, jax.Array]:
    """One update of a `Network`, and the loss before it. The memory of `state` is taken over.

    Args:
        graph: of the network.
        loss: what to minimise.
        rates: how far to go.
        state: what to change.
        rows: a batch.
        key: of dropout and of drawn items.
        shards: the mesh that `state` is divided over as `places` says, if it is divided.
    """

    def loss_at(params: Params, rows: Rows, key: jax.Array) -> jax.Array:
        dropout_key, negatives_key = jax.random.split(key)
        network: Network = nnx.merge(graph, params)
        hidden_BTD = network(rows, dropout_key)
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        target_N = jnp.asarray(rows.target_RT).reshape(-1)
        return loss_of(loss, hidden_ND, network.output_items(), target_N, negatives_key)

    slope = jax.value_and_grad(loss_at)
    if shards is None:
        value, gradient = slope(state.params, rows, key)
        return state.after(gradient, rates), value
    value, gradient = _over_devices(slope, shards)(state.params, rows, key)
    after = state.after(gradient, rates)
    return jax.lax.with_sharding_constraint(after, places(after, shards)), value


def places(tree: Any, shards: Shards) -> Any:
    """Which devices hold which part of parameters, or of a state: the items' vectors are divided.

    Args:
        tree: parameters or a `TrainState`.
        shards: the mesh.
    """

    def place(keys: Any, leaf: jax.Array) -> jax.sharding.NamedSharding:
        is_table = getattr(keys[-1], "key", None) == "item_ID"
        return shards.of(None, "embed") if is_table else shards.of()

    return jax.tree.map_with_path(place, tree)


def _over_devices(slope: Callable[..., Any], shards: Shards) -> Callable[..., Any]:
    """The loss of a batch and its gradient, from what each device makes of its rows."""
    rows = shards.rules.spec("batch")

    def on_device(params: Params, rows: Rows, key: jax.Array) -> Any:
        key = jax.random.fold_in(key, jax.lax.axis_index(shards.rules.batch))
        count = jnp.sum(rows.target_RT != NO_TARGET)
        # Each device has the mean over its positions, of which some have more than others.
        share = count / jnp.maximum(jax.lax.psum(count, shards.rules.batch), 1)
        parts = jax.tree.map(lambda x: x * share, slope(params, rows, key))
        return jax.lax.psum(parts, shards.rules.batch)

    # Sums over all devices leave equal values, which is not inferred.
    return jax.shard_map(
        on_device, mesh=shards.mesh, in_specs=(P(), rows, P()), out_specs=P(), check_vma=False
    )


def copy(tree: Params) -> Params:
    """The same values in memory of their own."""
    return jax.tree.map(jnp.copy, tree)
