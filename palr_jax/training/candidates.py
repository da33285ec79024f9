"""The loss of ranking: -log P(next item) among a retriever's candidates.

P is the probability that `palr_jax.decoding.score` ranks by, computed by the same functions. Only
the choices that lead to the target contribute.

Shapes: N = B * Q moments, Q moments of a row, E edges of a moment, S candidates of a moment, H
history items of a moment.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from palr_jax.decoding.candidate_head import Known, head_of
from palr_jax.decoding.score import path_logps, siblings, with_item_scores
from palr_jax.decoding.score_plan import Choices
from palr_jax.llm.config import Remat
from palr_jax.llm.llama import Llama, TokenLayout

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentBatch:
    """Packed rows of examples whose targets are next items.

    `palr_jax.instruct.moments.pack_moments` documents the fields and their padding. All are int32
    except `prior_BQS`, which is float32.
    """

    tokens_BT: Array
    position_BT: Array
    horizon_BT: Array
    item_BT: Array
    next_BT: Array
    index_BQ: Array
    target_BQ: Array
    weight_BQ: Array
    candidate_BQS: Array
    prior_BQS: Array
    end_BQS: Array
    history_BQH: Array
    edge_token_BQE: Array
    edge_index_BQE: Array
    edge_source_BQE: Array
    edge_first_BQE: Array
    edge_last_BQE: Array

    def count(self, text_loss: float = 0.0) -> jax.Array:
        """The sum of the weights: 1 per moment, `text_loss` per token of text."""
        text = (jnp.asarray(self.next_BT) >= 0).sum()
        return jnp.asarray(self.weight_BQ).sum() + text_loss * text


def candidate_loss(
    model: Llama,
    batch: MomentBatch,
    dropout_key: jax.Array | None = None,
    remat: Remat = "none",
    count: jax.Array | None = None,
    text_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-log P(target) among the candidates, averaged over the moments of the batch.

    With `text_loss` > 0, the mean includes the cross-entropy of the prompts' tokens: a small model
    that learns to write histories overfits less in ranking.

    Args:
        model: the ranker.
        batch: rows.
        dropout_key: key of the adapters' dropout; None disables dropout.
        remat: see `FinetuneConfig`.
        count: the divisor of the sums, if the batch is a part of a larger one.
        text_loss: weight of a token of text, relative to a moment's 1.

    Returns:
        The loss and the metrics `loss`, `accuracy` (share of moments where the best edge of every
        choice leads to the target), `tokens` (without padding), `label tokens` (moments), and
        `pairs` ((query, key) pairs of attention).
    """
    hidden_BTD = _hidden(model, batch, dropout_key, remat)
    logp_N, is_best_N = _target_logps(model, batch, hidden_BTD)
    weight_N = jnp.asarray(batch.weight_BQ).reshape(-1)
    count = jnp.maximum(batch.count(text_loss) if count is None else count, 1)
    loss = -jnp.where(weight_N > 0, logp_N, 0).sum() / count
    if text_loss:
        loss += text_loss * _text_nll(model, batch, hidden_BTD) / count
    real_BT = jnp.asarray(batch.horizon_BT) >= 0
    accuracy = (is_best_N * weight_N).sum() / count
    return loss, batch_metrics(loss, accuracy, weight_N, real_BT, batch.position_BT)


def batch_metrics(
    loss: jax.Array, accuracy: jax.Array, weight: Array, real_BT: jax.Array, position_BT: Array
) -> dict[str, jax.Array]:
    """The metrics of a batch of any objective.

    Args:
        loss: the loss.
        accuracy: the share of correct predictions.
        weight: 1 for each prediction, 0 for padding.
        real_BT: whether a token is not padding.
        position_BT: the position of each token in its example; it sees as many others.
    """
    return {
        "loss": loss,
        "accuracy": accuracy,
        "tokens": real_BT.sum(),
        "label tokens": weight.sum(),
        # The pairs of a large batch overflow an int32.
        "pairs": jnp.where(real_BT, position_BT + 1, 0).sum(dtype=jnp.float32),
    }


def _hidden(
    model: Llama,
    batch: MomentBatch,
    dropout_key: jax.Array | None,
    remat: Remat,
) -> jax.Array:
    head = head_of(model)
    layout = TokenLayout(
        jnp.asarray(batch.position_BT), jnp.asarray(batch.horizon_BT), branches=True
    )
    added_BTD = None if head is None else head.inputs(batch.item_BT)
    tokens_BT = jnp.asarray(batch.tokens_BT)
    return model.hidden(tokens_BT, layout, dropout_key, remat, added_BTD=added_BTD)


def _text_nll(model: Llama, batch: MomentBatch, hidden_BTD: jax.Array) -> jax.Array:
    """The sum of -log P(token | preceding text) over the tokens of the prompts."""
    next_BT = jnp.asarray(batch.next_BT)
    logits_BTV = model.logits(hidden_BTD)
    nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, jnp.maximum(next_BT, 0))
    return jnp.where(next_BT >= 0, nll_BT, 0).sum()


def _target_logps(
    model: Llama, batch: MomentBatch, hidden_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log P(target) of each moment, float32 [N], and whether all best edges lead to it, [N]."""
    head = head_of(model)
    B, Q, E = batch.edge_token_BQE.shape
    source_BXD = _take(hidden_BTD, jnp.asarray(batch.edge_index_BQE).reshape(B, -1))
    weights_BXD = model.head_weights()[jnp.asarray(batch.edge_token_BQE).reshape(B, -1)]
    logit_BX = jnp.einsum(
        "BXD,BXD->BX", source_BXD, weights_BXD, preferred_element_type=jnp.float32
    )
    choices, known = _choices(batch), _known(batch)
    logit_NE = logit_BX.reshape(B * Q, E)
    if head is not None:
        end_ND = _take(hidden_BTD, jnp.asarray(batch.index_BQ)).reshape(B * Q, -1)
        S = batch.end_BQS.shape[2]
        ends_BX = jnp.maximum(jnp.asarray(batch.end_BQS).reshape(B, -1), 0)
        title_NSD = _take(hidden_BTD, ends_BX).reshape(B * Q, S, -1)
        logit_NE = with_item_scores(head, logit_NE, end_ND, title_NSD, known, choices)
    logp_NS = path_logps(logit_NE, jnp.asarray(choices.leaf_BS) >= 0, choices)
    target_N1 = jnp.asarray(batch.target_BQ).reshape(-1, 1)
    logp_N = jnp.take_along_axis(logp_NS, target_N1, axis=1)[:, 0]
    return logp_N, _is_best(logit_NE, target_N1, choices)


def _take(hidden_BTD: jax.Array, index_BX: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden_BTD, index_BX[:, :, None], axis=1)


def _choices(batch: MomentBatch) -> Choices:
    """The choices of all moments, one row each; slots are in the order of their leaves."""
    B, Q, E = batch.edge_token_BQE.shape
    candidate_NS = jnp.asarray(batch.candidate_BQS).reshape(B * Q, -1)
    # A choice has at least two edges.
    return Choices(
        source_BE=jnp.asarray(batch.edge_source_BQE).reshape(B * Q, E),
        first_BE=jnp.asarray(batch.edge_first_BQE).reshape(B * Q, E),
        last_BE=jnp.asarray(batch.edge_last_BQE).reshape(B * Q, E),
        leaf_BS=jnp.where(candidate_NS >= 0, jnp.arange(candidate_NS.shape[1]), -1),
        count=E // 2,
    )


def _known(batch: MomentBatch) -> Known:
    B, Q, S = batch.candidate_BQS.shape
    return Known(
        item_BT=batch.item_BT,
        item_BS=jnp.asarray(batch.candidate_BQS).reshape(B * Q, S),
        history_BH=jnp.asarray(batch.history_BQH).reshape(B * Q, -1),
        prior_BS=jnp.asarray(batch.prior_BQS).reshape(B * Q, S),
    )


def _is_best(logit_NE: jax.Array, target_N1: jax.Array, choices: Choices) -> jax.Array:
    """Whether, in every choice, no edge is better than the one that leads to the target, [N]."""
    source_NE = jnp.asarray(choices.source_BE)
    best_NC = jnp.where(siblings(choices), logit_NE[:, None], -jnp.inf).max(-1)
    best_NE = jnp.take_along_axis(best_NC, jnp.maximum(source_NE, 0), axis=1)
    first_NE, last_NE = jnp.asarray(choices.first_BE), jnp.asarray(choices.last_BE)
    leads_NE = (first_NE <= target_N1) & (target_N1 <= last_NE) & (source_NE >= 0)
    return (~leads_NE | (logit_NE >= best_NE)).all(axis=1)
