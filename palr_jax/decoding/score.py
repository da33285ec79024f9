"""Ranking in one forward pass: P(candidate | prompt) of every candidate of every user.

The nodes of a trie follow the prompt, and each sees only the prompt and its own ancestors. At every
node that branches, the logits of its children are renormalised; the log-probability of a candidate
is the sum over the choices on its path. So the probabilities of a row sum to 1. Forced tokens have
probability 1: titles have no length bias, and only nodes that branch and their ancestors are fed.

Shapes: M fed nodes, E edges (children of nodes that branch), S slots.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.decoding.candidate_head import CandidateHead, Known, head_of
from palr_jax.decoding.score_plan import Choices, ScorePlan
from palr_jax.decoding.trie import Array
from palr_jax.llm.llama import Llama, TokenLayout
from palr_jax.llm.prefix import NO_PREFIX, Prefix
from palr_jax.trees import State

# A finite floor avoids NaN at nodes without a living edge.
DEAD = -1e30


def score(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    plan: ScorePlan,
    prefix: Prefix = NO_PREFIX,
    known: Known | None = None,
) -> jax.Array:
    """Scores the candidates of every row in one forward pass.

    Args:
        model: the ranker.
        prompt_tokens_BT: int32, prompts padded on the right; keep the number of distinct widths
            small, as each is compiled.
        prompt_length_B: int32, number of tokens of each prompt.
        plan: made by `plan_score` from the tries of the same rows.
        prefix: the tokens that all prompts begin with.
        known: inputs of the candidate head for the same rows; required if the model has one.

    Returns:
        [B, S] float32, the log-probability of each candidate under constrained decoding; -inf in
        empty slots. [B, P, S] if `known` holds P priors: all of them share one pass of the model.
    """
    graph, weights = nnx.split(model)
    return score_step(graph, weights, prompt_tokens_BT, prompt_length_B, plan, prefix, known)


@partial(jax.jit, static_argnums=(0, 5))
def score_step(
    graph: nnx.GraphDef[Llama],
    weights: State,
    prompt_tokens_BT: jax.Array,
    prompt_length_B: jax.Array,
    plan: ScorePlan,
    prefix: Prefix = NO_PREFIX,
    known: Known | None = None,
) -> jax.Array:
    """`score` of a model split into graph and weights; `palr plan` compiles it."""
    model = nnx.merge(graph, weights)
    head = head_of(model)
    T = prompt_tokens_BT.shape[1]
    tokens_BT = jnp.concatenate([prompt_tokens_BT, plan.token_BM], axis=1)
    layout = tree_layout(T, prompt_length_B, jnp.int32(0), plan)
    added_BTD = None if head is None else _inputs(head, known, plan)
    hidden_BTD = model.hidden(tokens_BT, layout, prefix=prefix, added_BTD=added_BTD)
    weights_BED = model.head_weights()[plan.edge_token_BE]
    logit_BE = edge_logits(weights_BED, hidden_BTD, T, prompt_length_B, plan)
    alive_BS = jnp.asarray(plan.leaf_BS) >= 0
    if head is None or known is None:
        return path_logps(logit_BE, alive_BS, plan.choices)
    end_BD = jnp.take_along_axis(hidden_BTD, prompt_length_B[:, None, None] - 1, axis=1)[:, 0]
    index_BS = jnp.where(jnp.asarray(plan.end_BS) >= 0, T + plan.end_BS, 0)
    title_BSD = jnp.take_along_axis(hidden_BTD, index_BS[:, :, None], axis=1)

    def logps(prior_BS: jax.Array) -> jax.Array:
        here = replace(known, prior_BS=prior_BS)
        scored_BE = with_item_scores(head, logit_BE, end_BD, title_BSD, here, plan.choices)
        return path_logps(scored_BE, alive_BS, plan.choices)

    prior = jnp.asarray(known.prior_BS)
    return jax.vmap(logps, in_axes=1, out_axes=1)(prior) if prior.ndim == 3 else logps(prior)


def _inputs(head: CandidateHead, known: Known | None, plan: ScorePlan) -> jax.Array | None:
    """The vectors that the head adds to the embeddings of prompt tokens; zeros at fed nodes."""
    if known is None:
        raise ValueError("a model with a candidate head needs its inputs: give known")
    fed = plan.token_BM.shape[1]
    return head.inputs(jnp.pad(jnp.asarray(known.item_BT), ((0, 0), (0, fed)), constant_values=-1))


def with_item_scores(
    head: CandidateHead,
    logit_BE: jax.Array,
    end_BD: jax.Array,
    title_BSD: jax.Array,
    known: Known,
    choices: Choices,
) -> jax.Array:
    """Logits of the edges, [B, E], with the head's scores of the candidates below each added.

    An edge gets the log-sum-exp of the scores of the candidates below it, so that if the text is
    uninformative P(candidate) is the softmax of these scores.

    Args:
        head: the candidate head, which also scales the logits.
        logit_BE: logits of the LM head.
        end_BD: the hidden state at the end of each prompt.
        title_BSD: the hidden state at the end of each candidate's text, if the head reads it.
        known: inputs of the head for the same rows.
        choices: the choices of the same rows.
    """
    item_score_B1S = head.item_scores(end_BD, title_BSD, known)[:, None]
    below_BES = jnp.where(above(choices), item_score_B1S, DEAD)
    item_logit_BE = jax.nn.logsumexp(below_BES, axis=-1)
    if head.text_scale is None:
        return item_logit_BE
    return head.text_scale[...] * logit_BE + item_logit_BE


def tree_layout(T: int, length_B: jax.Array, start_B: jax.Array, plan: ScorePlan) -> TokenLayout:
    """The layout of T causal tokens followed by the fed nodes, whose depths set their positions.

    Args:
        T: number of tokens before the fed nodes, including padding.
        length_B: int32, how many of them are not padding.
        start_B: int32, the position of the first token.
        plan: the fed nodes.
    """
    index_T, length_B1 = jnp.arange(T), length_B[:, None]
    start_B1 = jnp.broadcast_to(start_B, length_B.shape)[:, None]
    last = T + plan.token_BM.shape[1] - 1
    horizon_BT = jnp.where(index_T < length_B1, last, -1)
    horizon_BM = jnp.where(plan.depth_BM > 0, T + plan.horizon_BM, -1)
    position_BM = start_B1 + length_B1 - 1 + plan.depth_BM
    return TokenLayout(
        position_BT=jnp.concatenate([start_B1 + index_T, position_BM], axis=1),
        horizon_BT=jnp.concatenate([horizon_BT, horizon_BM], axis=1),
        branches=True,
    )


def edge_logits(
    head_BED: jax.Array, hidden_BTD: jax.Array, T: int, length_B: jax.Array, plan: ScorePlan
) -> jax.Array:
    """Logits of the edges, float32 [B, E], from hidden states in the order of `tree_layout`.

    `head_BED` holds only the rows of the LM head that belong to edges.
    """
    source_BE = jnp.asarray(plan.edge_source_BE)
    index_BE = jnp.where(source_BE > 0, T - 1 + source_BE, length_B[:, None] - 1)
    hidden_BED = jnp.take_along_axis(hidden_BTD, index_BE[:, :, None], axis=1)
    return jnp.einsum("BED,BED->BE", hidden_BED, head_BED, preferred_element_type=jnp.float32)


def path_logps(logit_BE: jax.Array, alive_BS: jax.Array, choices: Choices) -> jax.Array:
    """Log-probability of each slot, [B, S], when only alive slots may be written.

    Logits are renormalised over the edges of a node that lead to alive slots, and summed along the
    path; -inf for all other slots.
    """
    above_BES = above(choices)
    living_BE = (above_BES & alive_BS[:, None]).any(-1)
    logp_BE = _renormalise(jnp.where(living_BE, logit_BE, DEAD), choices)
    return jnp.where(alive_BS, jnp.where(above_BES, logp_BE[:, :, None], 0).sum(1), -jnp.inf)


def above(choices: Choices) -> jax.Array:
    """Whether each edge leads to each slot, bool [B, E, S]."""
    leaf_B1S = jnp.asarray(choices.leaf_BS)[:, None]
    first_BE1 = jnp.asarray(choices.first_BE)[:, :, None]
    last_BE1 = jnp.asarray(choices.last_BE)[:, :, None]
    return (first_BE1 <= leaf_B1S) & (leaf_B1S <= last_BE1)


def siblings(choices: Choices) -> jax.Array:
    """Whether each edge belongs to each choice, bool [B, count, E]."""
    source_B1E = jnp.asarray(choices.source_BE)[:, None]
    return source_B1E == jnp.arange(choices.count)[:, None]


def _renormalise(logit_BE: jax.Array, choices: Choices) -> jax.Array:
    """Log-softmax over the edges of the same choice; undefined at padding."""
    total_BC = jax.nn.logsumexp(jnp.where(siblings(choices), logit_BE[:, None], DEAD), axis=-1)
    source_BE = jnp.maximum(jnp.asarray(choices.source_BE), 0)
    return logit_BE - jnp.take_along_axis(total_BC, source_BE, axis=1)
