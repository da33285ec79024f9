"""Writing from a whole catalog: a beam over its trie, one forward pass per decision.

The trie of a catalog branches at more nodes than fit one pass, so `search` feeds only those that
its hypotheses reach.

Shapes: S slots (items), Y excluded slots.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.decoding.beam import Beam, SearchSpace, decide, write_best
from palr_jax.decoding.beam_reading import read_nodes, start
from palr_jax.decoding.generate import Slate
from palr_jax.decoding.trie import Array, Trie
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import NO_PREFIX, Prefix
from palr_jax.trees import State

# Every pass reads the weights and the whole cache, so it should process several tokens; but most of
# a wide pass is padding. Tokens that do not fit take another pass.
_TOKENS_PER_PASS = 16


def search(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    trie: Trie,
    excluded_BY: np.ndarray,
    k: int,
    width: int = 1,
    prefix: Prefix = NO_PREFIX,
) -> Slate:
    """Writes the slate of every row from one catalog, item 1, then item 2 given item 1, ….

    Args:
        model: the ranker.
        prompt_tokens_BT: int32, prompts padded on the right; keep the number of distinct widths
            small, as each is compiled.
        prompt_length_B: int32, number of tokens of each prompt.
        trie: the trie of the catalog, one row.
        excluded_BY: int32, the slots that may not be written in each row; padded with -1.
        k: items to write; a row with fewer allowed items writes all of them.
        width: hypotheses per row; 1 takes the best token at every choice.
        prefix: the tokens that all prompts begin with.

    Raises:
        ValueError: `trie` has more than one row.
    """
    if len(trie.slot_RS) != 1:
        raise ValueError(f"{len(trie.slot_RS)} tries for a catalog")
    leaves_BY, allowed_B = _excluded_leaves(trie, np.asarray(excluded_BY))
    space = SearchSpace(trie, leaves_BY, goal_B=np.minimum(allowed_B, k))
    graph, weights = nnx.split(model)
    return _search(graph, weights, prompt_tokens_BT, prompt_length_B, space, k, width, prefix)


def _excluded_leaves(trie: Trie, slot_BY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leaves of excluded slots in ascending order, and the number of leaves left, [B]."""
    leaf_S = np.asarray(trie.leaf_RS)[0]
    beyond = np.iinfo(np.int32).max
    leaf_BY = np.where(slot_BY >= 0, leaf_S[np.maximum(slot_BY, 0)], -1)
    leaf_BY = np.sort(np.where(leaf_BY >= 0, leaf_BY, beyond), axis=1)
    # A slot that is listed twice is excluded once.
    leaf_BY[:, 1:][leaf_BY[:, 1:] == leaf_BY[:, :-1]] = beyond
    leaf_BY = np.sort(leaf_BY, axis=1).astype(np.int32)
    allowed_B = (leaf_S >= 0).sum() - (leaf_BY < beyond).sum(axis=1)
    return leaf_BY, allowed_B.astype(np.int32)


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _search(
    graph: nnx.GraphDef[Llama],
    weights: State,
    prompt_tokens_BT: jax.Array,
    prompt_length_B: jax.Array,
    space: SearchSpace,
    k: int,
    width: int,
    prefix: Prefix,
) -> Slate:
    model = nnx.merge(graph, weights)
    head_VD = model.head_weights()
    tokens = max(_TOKENS_PER_PASS, 2 * width)

    def unfinished(beam: Beam) -> jax.Array:
        return jnp.any(beam.count_B < space.goal_B)

    def step(beam: Beam) -> Beam:
        beam = read_nodes(model, space, beam, tokens)
        return write_best(space, decide(model, head_VD, space, beam))

    beam = start(model, space, prompt_tokens_BT, prompt_length_B, k, width, tokens, prefix)
    beam = write_best(space, decide(model, head_VD, space, beam))
    beam = jax.lax.while_loop(unfinished, step, beam)
    slot_S = jnp.asarray(space.trie.slot_RS)[0]
    slot_BK = jnp.where(beam.leaf_BK >= 0, slot_S[beam.leaf_BK], -1)
    return Slate(slot_BK, beam.logp_BK, beam.passes)
