"""One optimizer step on a batch of packed rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from palr_jax.llm.axes import shardings
from palr_jax.llm.config import Remat
from palr_jax.llm.llama import Llama, packed_layout
from palr_jax.parallel.sharding import Shards
from palr_jax.training.candidates import MomentBatch, batch_metrics, candidate_loss
from palr_jax.training.config import FinetuneConfig
from palr_jax.trees import PyTree, State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows (all int32).

    Attributes:
        tokens_BT: token ids.
        position_BT: position of each token in its example.
        segment_BT: the example that each token belongs to, from 1; 0 is padding.
        target_BM: label tokens.
        target_index_BM: column of the row whose output predicts the label token.
        weight_BM: 1 for a label token, 0 for padding.
    """

    tokens_BT: jax.Array | np.ndarray
    position_BT: jax.Array | np.ndarray
    segment_BT: jax.Array | np.ndarray
    target_BM: jax.Array | np.ndarray
    target_index_BM: jax.Array | np.ndarray
    weight_BM: jax.Array | np.ndarray

    def count(self, text_loss: float = 0.0) -> jax.Array:
        """The number of label tokens; `text_loss` has no effect, as prompts have no loss here."""
        return jnp.asarray(self.weight_BM).sum()


AnyBatch = Batch | MomentBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that a step updates.

    Attributes:
        step: int32 scalar, steps done.
        params: the trained parameters.
        optimizer: state of the optimizer for `params`.
    """

    step: jax.Array
    params: State
    optimizer: optax.OptState


def optimizer(config: FinetuneConfig) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and a cosine that ends at a tenth of the peak."""
    warmup = min(config.warmup_steps, max(config.steps - 1, 0))
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.steps,
        end_value=config.learning_rate / 10,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=config.weight_decay),
    )


def label_loss(
    model: Llama,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    remat: Remat = "none",
    label_count: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the label tokens, averaged over the label tokens of the batch.

    The LM head runs only at label positions, because most tokens are prompt and the vocabulary is
    the widest axis.

    Args:
        model: the ranker.
        batch: rows.
        dropout_key: key of the adapters' dropout; None disables dropout.
        remat: see `FinetuneConfig`.
        label_count: the divisor of the sums, if the batch is a part of a larger one.

    Returns:
        The loss and the metrics `loss`, `accuracy` (of label tokens), `tokens` (without padding),
        `label tokens`, and `pairs` ((query, key) pairs of attention).
    """
    layout = packed_layout(jnp.asarray(batch.segment_BT), jnp.asarray(batch.position_BT))
    tokens_BT = jnp.asarray(batch.tokens_BT)
    hidden_BTD = model.hidden(tokens_BT, layout, dropout_key, remat)
    index_BM1 = jnp.asarray(batch.target_index_BM)[..., None]
    logits_BMV = model.logits(jnp.take_along_axis(hidden_BTD, index_BM1, axis=1))
    nll_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, batch.target_BM)
    count = jnp.maximum(batch.weight_BM.sum() if label_count is None else label_count, 1)
    correct_BM = (logits_BMV.argmax(-1) == batch.target_BM) * batch.weight_BM
    loss = (nll_BM * batch.weight_BM).sum() / count
    real_BT, accuracy = jnp.asarray(batch.segment_BT) > 0, correct_BM.sum() / count
    return loss, batch_metrics(loss, accuracy, batch.weight_BM, real_BT, batch.position_BT)


def loss_of(
    model: Llama,
    batch: AnyBatch,
    dropout_key: jax.Array | None = None,
    remat: Remat = "none",
    count: jax.Array | None = None,
    text_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and metrics of a batch: `candidate_loss` of a `MomentBatch`, else `label_loss`."""
    if isinstance(batch, MomentBatch):
        return candidate_loss(model, batch, dropout_key, remat, count, text_loss)
    return label_loss(model, batch, dropout_key, remat, count)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    graph: nnx.GraphDef[Llama],
    config: FinetuneConfig,
    state: TrainState,
    frozen: State,
    batch: AnyBatch,
    seed: int = 0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: (state, frozen parameters, batch) → (state, metrics); the old state is donated.

    `graph` and `config` are static, so models of one shape share one compiled program. If the model
    is sharded over a mesh, the new state has the sharding of the old one. `seed` seeds the
    adapters' dropout.
    """
    # Derived only from seed and step, so that a resumed run has the same dropout masks.
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
    count = batch.count(config.text_loss)

    def loss(
        params: State, part: AnyBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graph, params, frozen)
        return loss_of(model, part, key, config.remat, count, config.text_loss)

    gradient = jax.grad(loss, has_aux=True)
    grads, metrics = _sum_over_parts(gradient, state.params, batch, dropout_key, config.accumulate)
    updates, optimizer_state = optimizer(config).update(grads, state.optimizer, state.params)
    params: PyTree = optax.apply_updates(state.params, updates)
    metrics |= {"gradient norm": optax.tree.norm(grads)}
    after = TrainState(state.step + 1, params, optimizer_state)
    shards = nnx.merge(graph, state.params, frozen).compute.shards
    if shards is not None:
        # Without a constraint the compiler may choose other shardings, and the next step would be
        # recompiled.
        after = jax.lax.with_sharding_constraint(after, state_shardings(after, config, shards))
    return after, metrics


@partial(jax.jit, static_argnums=0)
def validation_sums(
    graph: nnx.GraphDef[Llama], params: State, frozen: State, batch: AnyBatch
) -> tuple[jax.Array, jax.Array]:
    """The sum of a batch's losses without dropout, and the number of summands."""
    loss, _ = loss_of(nnx.merge(graph, params, frozen), batch)
    return loss * batch.count(), batch.count()


def initial_state(params: State, config: FinetuneConfig, shards: Shards) -> TrainState:
    """The state before the first step, sharded like its parameters."""
    abstract = abstract_state(params, config, shards)
    moment_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.optimizer)
    moments = jax.jit(optimizer(config).init, out_shardings=moment_shardings)(params)
    return TrainState(jax.device_put(jnp.int32(0), shards.of()), params, moments)


def abstract_state(params: State, config: FinetuneConfig, shards: Shards) -> TrainState:
    """The shapes and shardings of a state; `params` may be arrays or shapes."""
    moments = jax.eval_shape(optimizer(config).init, params)
    step: PyTree = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, moments)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, config, shards),
    )


def state_shardings(state: TrainState, config: FinetuneConfig, shards: Shards) -> TrainState:
    """The shardings of a state; the optimizer's moments are sharded like their parameters.

    Args:
        state: arrays or shapes.
        config: the settings of the optimizer.
        shards: the mesh.
    """
    params = shardings(shards, state.params)
    whole: PyTree = shards.of()
    moments = optax.tree_map_params(
        optimizer(config),
        lambda _, sharding: sharding,
        state.optimizer,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(step=whole, params=params, optimizer=moments)


def _sum_over_parts(
    gradient: Callable[[State, AnyBatch, jax.Array], PyTree],
    params: State,
    batch: AnyBatch,
    key: jax.Array,
    number: int,
) -> PyTree:
    """The sum of `gradient` over `number` parts of a batch, computed one after the other.

    It equals `gradient` of the batch, because all parts divide by the batch's label tokens.
    """
    if number == 1:
        return gradient(params, batch, key)
    # Parts are strided, so that each device has rows of every part: adjacent rows share a device.
    parts = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, number)

    def add(sums: PyTree, part_and_key: tuple[AnyBatch, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, *part_and_key)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    shapes = jax.eval_shape(gradient, params, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, keys))[0]
