"""The parameters with which a ranker scores candidates beside the choices of their trie.

A ranker may get two things beside the text of the history. The *prior*: the probability of
each candidate, which stands at every choice of the trie; the LLaMA adds to it what it reads in the
text. And *item vectors*: the retriever's embedding of every item, or what a language model makes of
its title. They are mapped linearly to the input behind a title (as in CoLLM, Zhang et al. 2023, and
LLaRA, Liao et al. 2024), compared with the hidden state at the end of the prompt, and with each
other: a candidate that resembles the history scores higher. A ranker may also *read titles*: it
reads the whole text of every candidate behind the history, and the hidden state at its end is
mapped to a score. The choices alone look at the few tokens where titles part.

Shapes: B rows, T tokens, S candidates, H history items, I items, R width of an item vector, D width
of the LLaMA.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.llm.llama import Llama

Array = np.ndarray | jax.Array

# The weight of the text before training: the prior should lead until the text has been learned.
_TEXT_SCALE = 0.05
# Cosines differ by little: with their weights at 1, they count as much as this.
_LIKENESS = 100.0


class HeadParam(nnx.Param):
    """A parameter of the head, trained in full beside adapters too."""


class ItemVectors(nnx.Variable):
    """Item vectors, which are never trained."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """What is known of the rows of a batch beside their tokens.

    Attributes:
        item_BT: int32, at the last token of an item's text the item, elsewhere -1.
        item_BS: int32, the candidate in each slot; -1 where there is none, or no vector of it.
        history_BH: int32, the items of each history, the newest last; -1 where there is none, or no
            vector of it.
        prior_BS: float32, the retriever's log-probability of each candidate among those of its
            row; equal numbers (such as 0) carry no information.
    """

    item_BT: Array
    item_BS: Array
    history_BH: Array
    prior_BS: Array


class ItemBlock(nnx.Module):
    """One kind of item vectors, and how they are used.

    Maps start at zero: untrained, a block changes nothing.
    """

    def __init__(self, dim: int, vectors_IR: Array) -> None:
        width = vectors_IR.shape[1]
        self.vectors_IR = ItemVectors(standardised(jnp.asarray(vectors_IR)))
        self.input_RD = HeadParam(jnp.zeros((width, dim)))
        self.query_DR = HeadParam(jnp.zeros((dim, width)))
        # Of a candidate's mean and largest likeness to the history, and to its newest item.
        self.likeness_3 = HeadParam(jnp.zeros((3,)))

    def inputs(self, item_BT: Array) -> jax.Array:
        """What is added to the embedding of each token, [B, T, D]."""
        vector_BTR = self._vectors(item_BT) * self.input_RD.shape[0] ** -0.5
        return jnp.einsum("BTR,RD->BTD", vector_BTR, self.input_RD[...])

    def scores(self, end_BD: jax.Array, known: Known) -> jax.Array:
        """What the vectors say of each candidate, float32 [B, S]."""
        vector_BSR = self._vectors(known.item_BS)
        # The width of both factors taken off, a step of the optimizer moves scores by little.
        scale = self.query_DR.size**-0.5
        query_BR = end_BD.astype(jnp.float32) @ self.query_DR[...] * scale
        score_BS = jnp.einsum("BR,BSR->BS", query_BR, vector_BSR)
        return score_BS + _LIKENESS * self._likeness(vector_BSR, known) @ self.likeness_3[...]

    def _likeness(self, vector_BSR: jax.Array, known: Known) -> jax.Array:
        """Cosines of candidates and history items: mean, largest and newest, [B, S, 3]."""
        history_BH = jnp.asarray(known.history_BH)
        there_B1H = (history_BH >= 0)[:, None]
        cosine_BSH = jnp.einsum("BSR,BHR->BSH", _unit(vector_BSR), _unit(self._vectors(history_BH)))
        mean_BS = cosine_BSH.sum(-1) / jnp.maximum(there_B1H.sum(-1), 1)
        largest_BS = jnp.where(there_B1H, cosine_BSH, -1).max(-1)
        return jnp.stack([mean_BS, largest_BS, cosine_BSH[:, :, -1]], axis=-1)

    def _vectors(self, item_BX: Array) -> jax.Array:
        """The vector of each item, [B, X, R]; zero for -1."""
        item_BX = jnp.asarray(item_BX)
        vector_BXR = self.vectors_IR[...][jnp.maximum(item_BX, 0)]
        return jnp.where(item_BX[..., None] >= 0, vector_BXR, 0)


class CandidateHead(nnx.Module):
    """Weighs text, prior and item vectors; untrained, it ranks by the prior and the text alone."""

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
            has_prior: whether the retriever's probabilities stand at every choice.
            reads_titles: whether the whole text of every candidate is read.
        """
        self.text_scale = HeadParam(jnp.float32(_TEXT_SCALE if has_prior else 1.0))
        self.prior_scale = HeadParam(jnp.float32(1.0)) if has_prior else None
        self.title_D = HeadParam(jnp.zeros((dim,))) if reads_titles else None
        self.blocks = nnx.List([ItemBlock(dim, vectors_IR) for vectors_IR in vectors])

    def inputs(self, item_BT: Array) -> jax.Array | None:
        """What is added to the embedding of each token, [B, T, D]; None without item vectors."""
        if not len(self.blocks):
            return None
        return sum((block.inputs(item_BT) for block in self.blocks), start=jnp.zeros(()))

    def item_scores(self, end_BD: jax.Array, title_BSD: jax.Array, known: Known) -> jax.Array:
        """The score of each candidate beside the choices, float32 [B, S].

        Args:
            end_BD: the hidden state at the end of each prompt.
            title_BSD: the hidden state at the end of each candidate's text.
            known: of the same rows.
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
        """A head that looks at no state of the LLaMA: prior and likeness of item vectors alone."""
        silent = nnx.clone(self)
        silent.text_scale[...] = jnp.zeros_like(silent.text_scale[...])
        if silent.title_D is not None:
            silent.title_D[...] = jnp.zeros_like(silent.title_D[...])
        for block in silent.blocks:
            block.query_DR[...] = jnp.zeros_like(block.query_DR[...])
        return silent

    def with_vector(self, item_X: np.ndarray) -> np.ndarray:
        """The same items, -1 for those that there is no vector of."""
        if not len(self.blocks):
            return item_X
        return np.where(item_X < self.blocks[0].vectors_IR[...].shape[0], item_X, -1)


class RankingLlama(Llama):
    """A LLaMA with a candidate head; as a language model it is the one it was made of."""

    def __init__(self, llama: Llama, head: CandidateHead) -> None:
        self.config, self.lora, self.compute = llama.config, llama.lora, llama.compute
        self.embedding_VD, self.layers, self.norm = llama.embedding_VD, llama.layers, llama.norm
        if not llama.config.tie_embeddings:
            self.head_VD = llama.head_VD
        self.candidate_head = head


def head_of(model: Llama) -> CandidateHead | None:
    """The candidate head of a model, if it has one."""
    return model.candidate_head if isinstance(model, RankingLlama) else None


def _unit(vector_BXR: jax.Array) -> jax.Array:
    """Vectors of length 1; zeros stay zero."""
    return vector_BXR / jnp.sqrt(jnp.maximum((vector_BXR**2).sum(-1, keepdims=True), 1e-12))


def standardised(vectors_IR: jax.Array) -> jax.Array:
    """Item vectors in float32, every column with mean 0, all of them with variance 1."""
    centred_IR = vectors_IR.astype(jnp.float32) - vectors_IR.mean(axis=0)
    return centred_IR / jnp.maximum(jnp.sqrt((centred_IR**2).mean()), 1e-12)
