"""The parameters with which a ranker scores candidates beside the choices of their trie.

A ranker may get two things from the retriever. The *prior*: the probability of
each candidate, which stands at every choice of the trie; the LLaMA adds to it what it reads in the
text. And *item vectors*: the retriever's embedding of every item, mapped linearly to the input
behind a title (as in CoLLM, Zhang et al. 2023, and LLaRA, Liao et al. 2024), and compared with the
hidden state at the end of the prompt. A ranker may also *read titles*: it reads the whole text of
every candidate behind the history, and the hidden state at its end is mapped to a score. The
choices alone look at the few tokens where titles part.

Shapes: B rows, T tokens, S candidates, I items, R width of an item vector, D width of the LLaMA.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.llm.llama import Llama

Array = np.ndarray | jax.Array

# The weight of the text before training: the prior should lead until the text has been learned.
_TEXT_SCALE = 0.25


class HeadParam(nnx.Param):
    """A parameter of the head, trained in full beside adapters too."""


class ItemVectors(nnx.Variable):
    """The retriever's item vectors, which are never trained."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """What the retriever knows of the rows of a batch.

    Attributes:
        item_BT: int32, at the last token of an item's text the item, elsewhere -1.
        item_BS: int32, the candidate in each slot; -1 where there is none, or no vector of it.
        prior_BS: float32, the retriever's log-probability of each candidate among those of its
            row; equal numbers (such as 0) say nothing.
    """

    item_BT: Array
    item_BS: Array
    prior_BS: Array


class RetrieverHead(nnx.Module):
    """Weighs text, prior and item vectors.

    Maps start at zero: an untrained head ranks by the prior and the text alone.
    """

    def __init__(
        self, dim: int, vectors_IR: Array | None, has_prior: bool, reads_titles: bool
    ) -> None:
        self.title_D = HeadParam(jnp.zeros((dim,))) if reads_titles else None
        self.text_scale = HeadParam(jnp.float32(_TEXT_SCALE if has_prior else 1.0))
        self.prior_scale = HeadParam(jnp.float32(1.0)) if has_prior else None
        self.has_vectors = vectors_IR is not None
        if vectors_IR is not None:
            width = vectors_IR.shape[1]
            self.vectors_IR = ItemVectors(standardised(jnp.asarray(vectors_IR)))
            self.input_RD = HeadParam(jnp.zeros((width, dim)))
            self.query_DR = HeadParam(jnp.zeros((dim, width)))

    def inputs(self, item_BT: Array) -> jax.Array | None:
        """What is added to the embedding of each token, [B, T, D]; None without item vectors."""
        if not self.has_vectors:
            return None
        vector_BTR = self._vectors(item_BT) * self.input_RD.shape[0] ** -0.5
        return jnp.einsum("BTR,RD->BTD", vector_BTR, self.input_RD[...])

    def item_scores(self, end_BD: jax.Array, title_BSD: jax.Array, known: Known) -> jax.Array:
        """The score of each candidate beside the choices, float32 [B, S].

        Args:
            end_BD: the hidden state at the end of each prompt.
            title_BSD: the hidden state at the end of each candidate's text.
            known: of the same rows.
        """
        score_BS = jnp.zeros(known.item_BS.shape, jnp.float32)
        if self.title_D is not None:
            # The width taken off, a step of the optimizer moves scores by little.
            weight_D = self.title_D[...] * self.title_D.size**-0.5
            score_BS += jnp.einsum("BSD,D->BS", title_BSD.astype(jnp.float32), weight_D)
        if self.prior_scale is not None:
            score_BS += self.prior_scale[...] * jnp.asarray(known.prior_BS)
        if self.has_vectors:
            scale = self.query_DR.size**-0.5
            query_BR = end_BD.astype(jnp.float32) @ self.query_DR[...] * scale
            score_BS += jnp.einsum("BR,BSR->BS", query_BR, self._vectors(known.item_BS))
        return score_BS

    def with_vector(self, item_X: np.ndarray) -> np.ndarray:
        """The same items, -1 for those that the retriever has no vector of."""
        if not self.has_vectors:
            return item_X
        return np.where(item_X < self.vectors_IR[...].shape[0], item_X, -1)

    def _vectors(self, item_BX: Array) -> jax.Array:
        """The vector of each item, [B, X, R]; zero for -1."""
        item_BX = jnp.asarray(item_BX)
        vector_BXR = self.vectors_IR[...][jnp.maximum(item_BX, 0)]
        return jnp.where(item_BX[..., None] >= 0, vector_BXR, 0)


class RankingLlama(Llama):
    """A LLaMA with a retriever head; as a language model it is the one it was made of."""

    def __init__(self, llama: Llama, head: RetrieverHead) -> None:
        self.config, self.lora, self.compute = llama.config, llama.lora, llama.compute
        self.embedding_VD, self.layers, self.norm = llama.embedding_VD, llama.layers, llama.norm
        if not llama.config.tie_embeddings:
            self.head_VD = llama.head_VD
        self.retriever = head


def head_of(model: Llama) -> RetrieverHead | None:
    """The retriever head of a model, if it has one."""
    return model.retriever if isinstance(model, RankingLlama) else None


def standardised(vectors_IR: jax.Array) -> jax.Array:
    """Item vectors in float32, every column with mean 0, all of them with variance 1."""
    centred_IR = vectors_IR.astype(jnp.float32) - vectors_IR.mean(axis=0)
    return centred_IR / jnp.maximum(jnp.sqrt((centred_IR**2).mean()), 1e-12)
