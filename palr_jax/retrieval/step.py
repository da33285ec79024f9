"""One training step of the sequential retrievers.

On several devices, each computes some rows of the batch and stores a slice of every item vector,
its average and its moments; a step all-gathers the vectors.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from palr_jax.parallel.sharding import Shards
from palr_jax.retrieval.item_network import FEATURES
from palr_jax.retrieval.losses import NO_TARGET, Loss, loss_of
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.trees import KeyPath, PyTree

Params: TypeAlias = dict[str, PyTree]
"""Nested dicts of arrays."""


Slope: TypeAlias = Callable[[Params, HistoryRows, jax.Array], tuple[jax.Array, Params]]
"""(parameters, a batch, key) → (the loss, its gradient)."""


class Network(Protocol):
    """The interface of a Flax NNX module that reads histories in order."""

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The prediction of each token, as a vector to compare with items: [B, T, D].

        Args:
            rows: the tokens.
            key: dropout key; None disables dropout.
            newest: return only this many last columns; 0 for all.
        """

    def output_items(self) -> jax.Array:
        """The item vectors; scores are their inner products with predictions: [I, D]."""


class Rates(NamedTuple):
    """Rates of an update; see `RetrieverConfig`. Traced, so that a value causes no compilation."""

    learning_rate: float | jax.Array
    weight_decay: float | jax.Array
    averaging: float | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RetrieverState:
    """The state that a training step updates.

    Attributes:
        params: the parameters.
        average: their exponential moving average (EMA), which is used for validation and
            recommendations: it is better, and less noisy from epoch to epoch.
        moments: the state of AdamW.
    """

    params: Params
    average: Params
    moments: optax.OptState

    @classmethod
    def initial(cls, params: Params) -> "RetrieverState":
        """The state before the first step; it does not alias `params`."""
        return cls(copy(params), copy(params), optax.adamw(0.0).init(params))

    def after(self, gradient: Params, rates: Rates) -> "RetrieverState":
        """The state after one update."""
        optimizer = optax.adamw(rates.learning_rate, weight_decay=rates.weight_decay)
        update, moments = optimizer.update(gradient, self.moments, self.params)
        params: PyTree = optax.apply_updates(self.params, update)
        average: PyTree = optax.incremental_update(params, self.average, 1 - rates.averaging)
        if FEATURES in self.params:  # data, which weight decay must not shrink
            features = {FEATURES: self.params[FEATURES]}
            params, average = params | features, average | features
        return RetrieverState(params, average, moments)


@functools.partial(jax.jit, static_argnames=("graph", "loss", "shards"), donate_argnames="state")
def retriever_step(
    graph: nnx.GraphDef[Network],
    loss: Loss,
    rates: Rates,
    state: RetrieverState,
    rows: HistoryRows,
    key: jax.Array,
    shards: Shards | None = None,
) -> tuple[RetrieverState, jax.Array]:
    """The state after one update of a `Network`, and the loss before it. `state` is donated.

    Args:
        graph: the network's graph definition.
        loss: the loss to minimise.
        rates: learning rate, weight decay and EMA decay.
        state: the state to update.
        rows: a batch.
        key: key of dropout and of sampled negatives.
        shards: the mesh, if `state` is sharded as `retriever_shardings` says; None on one device.
    """

    def loss_at(params: Params, rows: HistoryRows, key: jax.Array) -> jax.Array:
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
    return jax.lax.with_sharding_constraint(after, retriever_shardings(after, shards)), value


def retriever_shardings(tree: PyTree, shards: Shards) -> PyTree:
    """The sharding of each array: item vectors are split by width, all else is replicated.

    Args:
        tree: parameters or a `RetrieverState`.
        shards: the mesh.
    """

    def sharding(keys: KeyPath, leaf: jax.Array) -> jax.sharding.NamedSharding:
        is_table = getattr(keys[-1], "key", None) == "item_ID"
        return shards.of(None, "embed") if is_table else shards.of()

    return jax.tree.map_with_path(sharding, tree)


def _over_devices(slope: Slope, shards: Shards) -> Slope:
    """The loss of a batch and its gradient, summed over the devices' rows."""
    rows = shards.rules.spec("batch")

    def on_device(params: Params, rows: HistoryRows, key: jax.Array) -> tuple[jax.Array, Params]:
        key = jax.random.fold_in(key, jax.lax.axis_index(shards.rules.batch))
        count = jnp.sum(rows.target_RT != NO_TARGET)
        # A device has the mean over its own positions, so weight it by their number.
        share = count / jnp.maximum(jax.lax.psum(count, shards.rules.batch), 1)
        parts = jax.tree.map(lambda x: x * share, slope(params, rows, key))
        return jax.lax.psum(parts, shards.rules.batch)

    # JAX does not infer that psum gives replicated values, so check_vma is off.
    return jax.shard_map(
        on_device, mesh=shards.mesh, in_specs=(P(), rows, P()), out_specs=P(), check_vma=False
    )


def copy(tree: Params) -> Params:
    """A deep copy of the arrays."""
    return jax.tree.map(jnp.copy, tree)
