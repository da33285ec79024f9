"""The parameters with which a ranker scores candidates, in addition to its LM head.

A ranker may get two inputs besides the text of the history. The *prior* is the retriever's
probability of each candidate. It enters every choice of the trie, and the logits of the LLaMA are
added to it. *Item vectors* are the retriever's embedding of every item, or a language model's
embedding of its title. They are mapped linearly to the input at the last token of a title (as in
CoLLM, Zhang et al. 2023, and LLaRA, Liao et al. 2024), compared with the hidden state at the end of
the prompt, and with each other: a candidate that resembles the history scores higher. A ranker may
also *read titles*: it reads the whole text of every candidate after the history and maps the hidden
state at its end to a score. The choices alone see only the few tokens where titles differ.

Shapes: S candidates of a row, H history items, R width of an item vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.llm.llama import Llama

Array = np.ndarray | jax.Array

# Initial weight of the text: the prior should dominate until the text has been learned.
_TEXT_SCALE = 0.05
# Cosines differ little, so they are multiplied by this in addition to their weights.
_LIKENESS = 100.0


class HeadParam(nnx.Param[jax.Array]):
    """A parameter of the head; trained in full, also when the LLaMA is tuned by adapters alone."""


class ItemVectors(nnx.Variable[jax.Array]):
    """Item vectors; never trained."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """Inputs of the head for the rows of a batch, in addition to their tokens.

    Attributes:
        item_BT: int32, the item whose text ends at each token; -1 at all other tokens.
        item_BS: int32, the candidate in each slot; -1 in empty slots and for items without a
            vector.
        history_BH: int32, the items of each history, the newest last; -1 at padding and for items
            without a vector.
        prior_BS: float32, the retriever's log-probability of each candidate among those of its
            row; a constant (such as 0) carries no information. As [B, P, S], P priors, under each
            of which the candidates are scored.
    """

    item_BT: Array
    item_BS: Array
    history_BH: Array
    prior_BS: Array


class ItemBlock(nnx.Module):
    """One kind of item vectors and the maps that use them.

    All maps are zero-initialised: an untrained block changes nothing.
    """

    def __init__(self, dim: int, vectors_IR: Array) -> None:
        width = vectors_IR.shape[1]
        self.vectors_IR = ItemVectors(standardised(jnp.asarray(vectors_IR)))
        self.input_RD = HeadParam(jnp.zeros((width, dim)))
        self.query_DR: HeadParam | None = HeadParam(jnp.zeros((dim, width)))
        # Weights of a candidate's mean and largest cosine with the history, and of its cosine with
        # the newest item.
        self.likeness_3 = HeadParam(jnp.zeros((3,)))

    def inputs(self, item_BT: Array) -> jax.Array:
        """The vectors to add to the token embeddings, [B, T, D]."""
        vector_BTR = self._vectors(item_BT) * self.input_RD.shape[0] ** -0.5
        return jnp.einsum("BTR,RD->BTD", vector_BTR, self.input_RD[...])

    def scores(self, end_BD: jax.Array, known: Known) -> jax.Array:
        """The score of each candidate by its vector, float32 [B, S]."""
        vector_BSR = self._vectors(known.item_BS)
        likeness_BS = _LIKENESS * self._likeness(vector_BSR, known) @ self.likeness_3[...]
        if self.query_DR is None:
            return likeness_BS
        # Scaled down by the width of both factors, so that an optimizer step changes scores little.
        scale = self.query_DR.size**-0.5
        query_BR = end_BD.astype(jnp.float32) @ self.query_DR[...] * scale
        return jnp.einsum("BR,BSR->BS", query_BR, vector_BSR) + likeness_BS

    def _likeness(self, vector_BSR: jax.Array, known: Known) -> jax.Array:
        """Cosines of candidates and history items: mean, largest and newest, [B, S, 3]."""
        history_BH = jnp.asarray(known.history_BH)
        is_item_B1H = (history_BH >= 0)[:, None]
        cosine_BSH = jnp.einsum("BSR,BHR->BSH", _unit(vector_BSR), _unit(self._vectors(history_BH)))
        mean_BS = cosine_BSH.sum(-1) / jnp.maximum(is_item_B1H.sum(-1), 1)
        largest_BS = jnp.where(is_item_B1H, cosine_BSH, -1).max(-1)
        return jnp.stack([mean_BS, largest_BS, cosine_BSH[:, :, -1]], axis=-1)

    def _vectors(self, item_BX: Array) -> jax.Array:
        """The vector of each item, [B, X, R]; zeros for -1."""
        item_BX = jnp.asarray(item_BX)
        vector_BXR = self.vectors_IR[...][jnp.maximum(item_BX, 0)]
        return jnp.where(item_BX[..., None] >= 0, vector_BXR, 0)


class CandidateHead(nnx.Module):
    """Combines text, prior and item vectors; untrained, it ranks by prior and text alone."""

    def __init__(
        self,
        dim: int,
        vectors: Sequence[Array] = (),
        has_prior: bool = False,
        reads_titles: bool = False,
    ) -> None:
        """Makes an untrained head.

        Args:
            dim: D.
            vectors: item vectors of each kind, [I, R]; all of the same items.
            has_prior: whether the retriever's probabilities are added at every choice.
            reads_titles: whether the whole text of every candidate is read.
        """
        scale = _TEXT_SCALE if has_prior else 1.0
        self.text_scale: HeadParam | None = HeadParam(jnp.float32(scale))
        self.prior_scale = HeadParam(jnp.float32(1.0)) if has_prior else None
        self.title_D = HeadParam(jnp.zeros((dim,))) if reads_titles else None
        self.blocks = nnx.List([ItemBlock(dim, vectors_IR) for vectors_IR in vectors])

    def inputs(self, item_BT: Array) -> jax.Array | None:
        """The vectors to add to the token embeddings, [B, T, D]; None without item vectors."""
        if not len(self.blocks):
            return None
        return sum((block.inputs(item_BT) for block in self.blocks), start=jnp.zeros(()))

    def item_scores(self, end_BD: jax.Array, title_BSD: jax.Array, known: Known) -> jax.Array:
        """The score of each candidate besides the logits of its choices, float32 [B, S].

        Args:
            end_BD: the hidden state at the end of each prompt.
            title_BSD: the hidden state at the end of each candidate's text.
            known: inputs of the same rows.
        """
        score_BS = jnp.zeros(known.item_BS.shape, jnp.float32)
        if self.title_D is not None:
            weight_D = self.title_D[...] * self.title_D.size**-0.5
            score_BS += jnp.einsum("BSD,D->BS", title_BSD.astype(jnp.float32), weight_D)
        if self.prior_scale is not None:
            score_BS += self.prior_scale[...] * jnp.asarray(known.prior_BS)
        for block in self.blocks:
            score_BS += block.scores(end_BD, known)
        return score_BS

    def without_text(self) -> "CandidateHead":
        """A head that ignores the LLaMA: it ranks by the prior and the cosines of item vectors.

        It has no parameter that multiplies a state of the LLaMA, so a compiled program that scores
        with it does not run the LLaMA.
        """
        silent = nnx.clone(self)
        silent.text_scale, silent.title_D = None, None
        for block in silent.blocks:
            block.query_DR = None
        return silent

    def with_vector(self, item_X: np.ndarray) -> np.ndarray:
        """The same items, with -1 for those without a vector."""
        if not len(self.blocks):
            return item_X
        return np.where(item_X < self.blocks[0].vectors_IR[...].shape[0], item_X, -1)


class RankingLlama(Llama):
    """A LLaMA with a candidate head; it shares the parameters of the `llama` it wraps."""

    def __init__(self, llama: Llama, head: CandidateHead) -> None:
        self.config, self.lora, self.compute = llama.config, llama.lora, llama.compute
        self.embedding_VD, self.layers, self.norm = llama.embedding_VD, llama.layers, llama.norm
        if not llama.config.tie_embeddings:
            self.head_VD = llama.head_VD
        self.candidate_head = head


def head_of(model: Llama) -> CandidateHead | None:
    """The candidate head of a model; None if it has none."""
    return model.candidate_head if isinstance(model, RankingLlama) else None


def _unit(vector_BXR: jax.Array) -> jax.Array:
    """The vectors scaled to length 1; zeros stay zero."""
    return vector_BXR / jnp.sqrt(jnp.maximum((vector_BXR**2).sum(-1, keepdims=True), 1e-12))


def standardised(vectors_IR: jax.Array) -> jax.Array:
    """Item vectors in float32: every column has mean 0, the whole table variance 1."""
    centred_IR = vectors_IR.astype(jnp.float32) - vectors_IR.mean(axis=0)
    return centred_IR / jnp.maximum(jnp.sqrt((centred_IR**2).mean()), 1e-12)
