"""One training step of the sequential retrievers.

On several devices, each computes some rows of the batch and stores a slice of every item vector,
its average and its moments. cross_entropy needs all items, so a step all-gathers their vectors; the
other losses look up those of the batch and of the sampled negatives.

Shapes: N positions, M = 2 N + negatives items that a device looks up.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from palr_jax.parallel import ordered
from palr_jax.parallel.sharding import Shards
from palr_jax.retrieval import item_tables
from palr_jax.retrieval.item_network import EMBEDDINGS, FEATURES
from palr_jax.retrieval.item_tables import retriever_shardings
from palr_jax.retrieval.losses import NO_TARGET, Loss, Sampled, loss_of, sample, sampled_loss
from palr_jax.retrieval.rows import HistoryRows
from palr_jax.trees import PyTree

Params: TypeAlias = dict[str, PyTree]
"""Nested dicts of arrays."""


LossAndGradient: TypeAlias = Callable[[Params, HistoryRows, jax.Array], tuple[jax.Array, Params]]
"""(parameters, a batch, key) → the loss and its gradient."""


TableSum: TypeAlias = Callable[[jax.Array], jax.Array]
"""The gradient of a table on one device → this device's columns of the sum over all devices."""


class Network(Protocol):
    """The interface of a Flax NNX module that reads histories in order."""

    def __call__(self, rows: HistoryRows, key: jax.Array | None, newest: int = 0) -> jax.Array:
        """The prediction of each token, as a vector to compare with items: [B, T, D].

        Args:
            rows: the tokens.
            key: dropout key; None disables dropout.
            newest: return only this many last columns; 0 for all.
        """

    def items(self) -> jax.Array:
        """The vectors of all items, and of the padding and mask tokens: [I + 1, D]."""

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


def initial_state(params: Params, shards: Shards | None = None) -> RetrieverState:
    """The state before the first step, on the devices of a mesh; it does not alias `params`."""
    if shards is None:
        return RetrieverState.initial(params)
    placed = retriever_shardings(jax.eval_shape(RetrieverState.initial, params), shards)
    state: RetrieverState = jax.jit(RetrieverState.initial, out_shardings=placed)(params)
    return state


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
    if shards is None:
        loss_and_gradient = jax.value_and_grad(functools.partial(_loss, graph, loss))
        value, gradient = loss_and_gradient(state.params, rows, key)
        return state.after(gradient, rates), value
    value, gradient = _over_devices(graph, loss, shards)(state.params, rows, key)
    after = state.after(gradient, rates)
    return jax.lax.with_sharding_constraint(after, retriever_shardings(after, shards)), value


def _loss(
    graph: nnx.GraphDef[Network], loss: Loss, params: Params, rows: HistoryRows, key: jax.Array
) -> jax.Array:
    dropout_key, negatives_key = jax.random.split(key)
    network: Network = nnx.merge(graph, params)
    hidden_BTD = network(rows, dropout_key)
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    target_N = jnp.asarray(rows.target_RT).reshape(-1)
    return loss_of(loss, hidden_ND, network.output_items(), target_N, negatives_key)


def _over_devices(graph: nnx.GraphDef[Network], loss: Loss, shards: Shards) -> LossAndGradient:
    """The loss of a batch and its gradient, summed over the devices' rows."""
    compute = _with_all_items if loss.kind == "cross_entropy" else _with_items_of_batch

    def on_device(params: Params, rows: HistoryRows, key: jax.Array) -> tuple[jax.Array, Params]:
        key = jax.random.fold_in(key, jax.lax.axis_index(shards.rules.batch))
        count = jnp.sum(rows.target_RT != NO_TARGET)
        # A device has the mean over its own positions, so weight it by their number.
        share = count / jnp.maximum(jax.lax.psum(count, shards.rules.batch), 1)
        loss_and_gradient, sum_over_devices = compute(graph, loss, params, rows, key)
        value, gradient = jax.tree.map(lambda x: x * share, loss_and_gradient)
        of_tables, of_others = item_tables.split_off(gradient)
        value, total = ordered.total((value, of_others))
        # The features are data: their gradient is not used.
        total |= {name: jnp.zeros_like(params[name]) for name in of_tables}
        total[EMBEDDINGS] = sum_over_devices(of_tables[EMBEDDINGS])
        return value, total

    def over_devices(params: Params, rows: HistoryRows, key: jax.Array) -> tuple[jax.Array, Params]:
        placed = item_tables.specs(params, shards)
        return jax.shard_map(
            on_device,
            mesh=shards.mesh,
            in_specs=(placed, shards.rules.spec("batch", None), P()),
            out_specs=(P(), placed),
            check_vma=False,  # JAX does not infer that the sums are replicated
        )(params, rows, key)

    return over_devices


def _with_all_items(
    graph: nnx.GraphDef[Network], loss: Loss, params: Params, rows: HistoryRows, key: jax.Array
) -> tuple[tuple[jax.Array, Params], TableSum]:
    """The loss and gradient of this device's rows, for a loss that compares with all items.

    Returns:
        The loss and the gradient of whole tables, and the sum of a table's gradients.
    """
    divided, others = item_tables.split_off(params)
    gathered = {name: item_tables.whole(table) for name, table in divided.items()}
    loss_and_gradient = jax.value_and_grad(functools.partial(_loss, graph, loss))
    return loss_and_gradient(others | gathered, rows, key), ordered.total_columns


def _with_items_of_batch(
    graph: nnx.GraphDef[Network], loss: Loss, params: Params, rows: HistoryRows, key: jax.Array
) -> tuple[tuple[jax.Array, Params], TableSum]:
    """The loss and gradient of this device's rows, for a loss that compares with sampled items.

    The network runs on tables of the M items of this device: position n reads row n.

    Returns:
        The loss and the gradient of tables of M rows, and the sum of a table's gradients.
    """
    divided, others = item_tables.split_off(params)
    num_rows = len(divided[EMBEDDINGS])
    dropout_key, negatives_key = jax.random.split(key)
    ids = sample(loss, jnp.asarray(rows.target_RT).reshape(-1), num_rows - 1, negatives_key)
    item_M = jnp.concatenate(
        [rows.item_RT.reshape(-1), jnp.maximum(ids.target_N, 0), ids.negative.reshape(-1)]
    )
    looked_up = {name: item_tables.look_up(table, item_M) for name, table in divided.items()}
    here, at = _renumbered(rows, ids)

    def loss_at(params: Params) -> jax.Array:
        network: Network = nnx.merge(graph, params)
        hidden_BTD = network(here, dropout_key)
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        return sampled_loss(loss, hidden_ND, network.items(), at, ids, num_rows - 1)

    def sum_over_devices(gradient_MD: jax.Array) -> jax.Array:
        return item_tables.add_up(item_M, gradient_MD, num_rows)

    return jax.value_and_grad(loss_at)(others | looked_up), sum_over_devices


def _renumbered(rows: HistoryRows, ids: Sampled) -> tuple[HistoryRows, Sampled]:
    """The batch and the samples, with indices into the table of looked-up items for item ids."""
    count = len(ids.target_N)
    row_N = jnp.arange(count)
    negatives = 2 * count + jnp.arange(ids.negative.size).reshape(ids.negative.shape)
    return (
        replace(rows, item_RT=row_N.reshape(rows.item_RT.shape)),
        Sampled(count + row_N, negatives),
    )


def copy(tree: Params) -> Params:
    """A deep copy of the arrays."""
    return jax.tree.map(jnp.copy, tree)
