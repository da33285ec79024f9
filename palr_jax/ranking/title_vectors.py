"""Item vectors made of titles alone: by their words, or by a language model that reads them.

They know items that nobody has bought yet, and say which items resemble one another.

Shapes: I items, W words, B titles of a batch, T tokens of a title, D width of the LLaMA, R width of
an item vector.
"""

import math
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import sparse
from scipy.sparse.linalg import svds

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.io.progress import progress
from palr_jax.llm.checkpoints.loading import load
from palr_jax.llm.llama import Llama, causal_layout
from palr_jax.padding import to_multiple
from palr_jax.retrieval.item_network import WIDTH
from palr_jax.trees import State

_BATCH = 64
# Tokens of a title that are read; later ones rarely distinguish two items.
_TOKENS = 32


def word_vectors(catalog: Catalog, width: int = WIDTH) -> np.ndarray:
    """Latent semantic analysis of the titles (Deerwester et al. 1990), float32 [I, R].

    Words count by how rare they are (tf-idf), and titles by the largest singular vectors.

    Args:
        catalog: the items.
        width: R, less in a catalog of fewer words or items.
    """
    words_I = [sorted(set(re.findall(r"\w+", title.casefold()))) for title in catalog.titles]
    count_W = Counter(word for words in words_I for word in words)
    number_W = {word: number for number, word in enumerate(sorted(count_W))}
    row = np.repeat(np.arange(len(words_I)), [len(words) for words in words_I])
    column = [number_W[word] for words in words_I for word in words]
    value = [math.log(len(words_I) / count_W[word]) for words in words_I for word in words]
    table_IW = sparse.csr_matrix((value, (row, column)), (len(words_I), max(len(number_W), 1)))
    norm_I = np.sqrt(np.asarray(table_IW.multiply(table_IW).sum(axis=1)).reshape(-1))
    unit_IW = sparse.csr_matrix(table_IW.multiply(1 / np.maximum(norm_I, 1e-9)[:, None]))
    rank = min(width, *(size - 1 for size in unit_IW.shape))
    if rank < 1:
        raise UserError("titles hold too few words for ranker.item_embeddings words: leave it out")
    left_IR, scale_R, _ = svds(unit_IW, k=rank, v0=np.ones(min(unit_IW.shape)))
    return np.asarray(left_IR * scale_R, np.float32)


def language_model_vectors(catalog: Catalog, weights: str, width: int = WIDTH) -> np.ndarray:
    """What the lower half of a LLaMA makes of each title, float32 [I, R].

    The mean of its hidden states, reduced to the directions in which items differ most, each
    scaled to the same variance: a language model's own directions are far from equally long.

    Args:
        catalog: the items.
        weights: what `ranker.weights` takes, with a tokenizer.
        width: R, less in a catalog of fewer items.

    Raises:
        UserError: the weights cannot be read or have no tokenizer.
    """
    model, tokenizer = load(weights)
    if tokenizer is None:
        raise UserError(f"{weights} has no tokenizer: ranker.title_weights needs one")
    rows_I = [tokenizer.encode(title)[:_TOKENS] for title in catalog.titles]
    return _whitened(_mean_states(_lower_half(model), rows_I), width)


def _lower_half(model: Llama) -> Llama:
    """The model without its upper layers, which prepare the next token."""
    layers = max(1, model.config.num_layers // 2)
    lower = nnx.clone(model)
    nnx.update(lower.layers, jax.tree.map(lambda leaf: leaf[:layers], nnx.state(model.layers)))
    return lower


def _mean_states(model: Llama, rows_I: list[np.ndarray]) -> np.ndarray:
    """The mean hidden state over the tokens of each row, float32 [I, D]."""
    graph, weights = nnx.split(model)
    length_I = np.array([len(row) for row in rows_I])
    order_I = np.argsort(length_I, kind="stable")
    mean_ID = np.zeros((len(rows_I), model.config.dim), np.float32)
    with progress("title vectors", len(rows_I), "titles") as advance:
        for start in range(0, len(rows_I), _BATCH):
            items_B = order_I[start : start + _BATCH]
            length_B = np.resize(length_I[items_B], _BATCH)
            width = to_multiple(max(int(length_B.max()), 1), 8)
            tokens_BT = np.zeros((_BATCH, width), np.int32)
            for number, item in enumerate(items_B):
                tokens_BT[number, : length_I[item]] = rows_I[item]
            mean_BD = np.asarray(_means(graph, weights, tokens_BT, length_B))
            mean_ID[items_B] = mean_BD[: len(items_B)]
            advance(len(items_B))
    return mean_ID


@partial(jax.jit, static_argnums=0)
def _means(
    graph: nnx.GraphDef[Llama], weights: State, tokens_BT: jax.Array, length_B: jax.Array
) -> jax.Array:
    hidden_BTD = nnx.merge(graph, weights).hidden(
        tokens_BT, causal_layout(length_B, tokens_BT.shape[1])
    )
    there_BT1 = (jnp.arange(tokens_BT.shape[1]) < length_B[:, None])[:, :, None]
    total_BD = jnp.where(there_BT1, hidden_BTD.astype(jnp.float32), 0).sum(axis=1)
    return total_BD / jnp.maximum(length_B, 1)[:, None]


def _whitened(vectors_ID: np.ndarray, width: int) -> np.ndarray:
    """The `width` principal directions, each of variance 1, float32 [I, R]."""
    centred_ID = vectors_ID - vectors_ID.mean(axis=0)
    left_IR, scale_R, _ = np.linalg.svd(centred_ID, full_matrices=False)
    kept = int(min(width, (scale_R > 1e-6 * scale_R[0]).sum()))
    return np.asarray(left_IR[:, :kept] * len(vectors_ID) ** 0.5, np.float32)
