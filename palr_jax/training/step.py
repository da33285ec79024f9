"""One optimizer step on a batch of packed rows.

Shapes: B rows, T tokens a row, M label tokens a row, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from palr_jax.llm.axes import shardings
from palr_jax.llm.config import Remat
from palr_jax.llm.llama import Llama, packed_layout
from palr_jax.parallel.sharding import Shards
from palr_jax.training.candidates import MomentBatch, candidate_loss
from palr_jax.training.config import FinetuneConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows (all int32).

    Attributes:
        tokens_BT: token ids.
        position_BT: place of each token within its example.
        segment_BT: the example each token belongs to, from 1; 0 is padding.
        target_BM: label tokens.
        target_index_BM: the place in the row whose output predicts the label token.
        weight_BM: 1 for a label token, 0 for padding.
    """

    tokens_BT: jax.Array | np.ndarray
    position_BT: jax.Array | np.ndarray
    segment_BT: jax.Array | np.ndarray
    target_BM: jax.Array | np.ndarray
    target_index_BM: jax.Array | np.ndarray
    weight_BM: jax.Array | np.ndarray

    def count(self, text_loss: float = 0.0) -> jax.Array:
        """How many label tokens there are; the text of prompts is never learned here."""
        return jnp.asarray(self.weight_BM).sum()


AnyBatch = Batch | MomentBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
        step: int32 scalar, steps done.
        params: the trainable part of the model.
        optimizer: state of the optimizer, shaped by `params` alone.
    """

    step: jax.Array
    params: nnx.State
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
    shards: Shards | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the label tokens, averaged over the label tokens of the batch.

    The LM head runs at label places only: a prompt is most of the tokens, and the vocabulary is
    the widest axis there is.

    Args:
        model: the ranker.
        batch: rows.
        dropout_key: of the adapters' dropout; None for none.
        remat: see `FinetuneConfig`.
        label_count: what sums are divided by, if the batch is a part of a larger one.
        shards: over which mesh rows and weights are divided, if at all.

    Returns:
        The loss and the metrics `loss`, `accuracy` (of label tokens), `tokens` (not padding),
        `label tokens`, and `pairs`: the sum over the tokens of how many tokens each sees.
    """
    layout = packed_layout(jnp.asarray(batch.segment_BT), jnp.asarray(batch.position_BT))
    tokens_BT = jnp.asarray(batch.tokens_BT)
    hidden_BTD = model.hidden(tokens_BT, layout, dropout_key, remat, shards)
    index_BM1 = jnp.asarray(batch.target_index_BM)[..., None]
    logits_BMV = model.logits(jnp.take_along_axis(hidden_BTD, index_BM1, axis=1), shards)
    nll_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, batch.target_BM)
    count = jnp.maximum(batch.weight_BM.sum() if label_count is None else label_count, 1)
    correct_BM = (logits_BMV.argmax(-1) == batch.target_BM) * batch.weight_BM
    loss = (nll_BM * batch.weight_BM).sum() / count
    real_BT = batch.segment_BT > 0
    metrics = {
        "loss": loss,
        "accuracy": correct_BM.sum() / count,
        "tokens": real_BT.sum(),
        "label tokens": batch.weight_BM.sum(),
        # Of a large batch there are more than an int32 holds.
        "pairs": jnp.where(real_BT, batch.position_BT + 1, 0).sum(dtype=jnp.float32),
    }
    return loss, metrics


def loss_of(
    model: Llama,
    batch: AnyBatch,
    dropout_key: jax.Array | None = None,
    remat: Remat = "none",
    count: jax.Array | None = None,
    shards: Shards | None = None,
    text_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and the metrics of a batch: `candidate_loss` of moments, else `label_loss`."""
    if isinstance(batch, MomentBatch):
        return candidate_loss(model, batch, dropout_key, remat, count, shards, text_loss)
    return label_loss(model, batch, dropout_key, remat, count, shards)


@partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=2)
def train_step(
    graph: Any,
    config: FinetuneConfig,
    state: TrainState,
    frozen: nnx.State,
    batch: AnyBatch,
    shards: Shards | None = None,
    seed: int = 0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: (state, frozen parameters, batch) → (state, metrics); the old state is donated.

    `graph`, `config` and `shards` are static, so models of one shape share one compiled program.
    With `shards` the new state is divided as the old one was placed. `seed` is that of the
    adapters' dropout.
    """

    # Drawn from seed and step alone, so that a resumed run drops out the same inputs.
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
    count = batch.count(config.text_loss)

    def loss(
        params: nnx.State, part: AnyBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graph, params, frozen)
        return loss_of(model, part, key, config.remat, count, shards, config.text_loss)

    gradient = jax.grad(loss, has_aux=True)
    grads, metrics = _sum_over_parts(gradient, state.params, batch, dropout_key, config.accumulate)
    updates, optimizer_state = optimizer(config).update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"gradient norm": optax.tree.norm(grads)}
    after = TrainState(state.step + 1, params, optimizer_state)
    if shards is not None:
        # Left to itself, the compiler may place the state elsewhere, and the next step would be
        # compiled anew.
        after = jax.lax.with_sharding_constraint(after, state_shardings(after, config, shards))
    return after, metrics


@partial(jax.jit, static_argnums=(0, 4))
def validation_sums(
    graph: Any, params: nnx.State, frozen: nnx.State, batch: AnyBatch, shards: Shards | None = None
) -> tuple[jax.Array, jax.Array]:
    """The sum of the losses of a batch without dropout, and over how many they are summed."""
    loss, _ = loss_of(nnx.merge(graph, params, frozen), batch, shards=shards)
    return loss * batch.count(), batch.count()


def initial_state(params: nnx.State, config: FinetuneConfig, shards: Shards) -> TrainState:
    """The state before the first step, divided over a mesh as its parameters are."""
    abstract = abstract_state(params, config, shards)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract.optimizer)
    moments = jax.jit(optimizer(config).init, out_shardings=places)(params)
    return TrainState(jax.device_put(jnp.int32(0), shards.of()), params, moments)


def abstract_state(params: nnx.State, config: FinetuneConfig, shards: Shards) -> TrainState:
    """The shapes and shardings of a state, whose parameters may be shapes themselves."""
    moments = jax.eval_shape(optimizer(config).init, params)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, moments)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        state_shardings(state, config, shards),
    )


def state_shardings(state: TrainState, config: FinetuneConfig, shards: Shards) -> TrainState:
    """Which devices hold which part of a state; its optimizer is divided as its parameters are.

    Args:
        state: of arrays or of shapes.
        config: of the optimizer.
        shards: the mesh.
    """
    params = shardings(shards, state.params)
    whole: Any = shards.of()
    moments = optax.tree_map_params(
        optimizer(config),
        lambda _, sharding: sharding,
        state.optimizer,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(step=whole, params=params, optimizer=moments)


def _sum_over_parts(
    gradient: Callable[[Any, AnyBatch, jax.Array], Any],
    params: nnx.State,
    batch: AnyBatch,
    key: jax.Array,
    number: int,
) -> Any:
    """What `gradient` gives for a batch, added up over `number` parts of it, one after the other.

    Sums of parts are those of the batch, since all of them divide by the label tokens of the batch.
    """
    if number == 1:
        return gradient(params, batch, key)
    # Every device takes a share of every part: rows that lie together are on one device.
    parts = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, number)

    def add(sums: Any, part_and_key: tuple[AnyBatch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, *part_and_key)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    shapes = jax.eval_shape(gradient, params, *first)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, nothing, (parts, keys))[0]
