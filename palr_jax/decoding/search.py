"""Writing from a whole catalog: a beam over its trie, one forward pass per decision.

The trie of a catalog branches at more nodes than could be fed at once, so `search` feeds those that
its hypotheses reach. A hypothesis is a place in the trie; forced tokens are read together with the
decided one. The hypotheses of a row share its cache: the nodes they have read stand behind the
committed tokens in any order, and a node sees its own ancestors among them. When an item is
written its tokens are read once more, in order, and the rest is forgotten.

Rows are independent; each is at its own stage.

Shapes: B rows, T prompt tokens, Q tokens of a pass, S slots of the cache, X read nodes of a row, W
hypotheses, F children of a node, P tokens of an item and of the forced run behind it, Y excluded
leaves, K items of the slate, N nodes, D width, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.decoding.generate import Slate
from palr_jax.decoding.score import DEAD
from palr_jax.decoding.trie import Array, Trie
from palr_jax.llm.kv_cache import KVCache, View
from palr_jax.llm.llama import Llama

# Every pass reads the weights and the whole cache, so it should read several tokens; but most of a
# wide pass is padding. What does not fit takes another pass.
_TOKENS_PER_PASS = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """What does not change.

    Attributes:
        trie: one trie for all rows.
        excluded_BY: int32, ascending, the leaves that may not be written; behind them a number
            beyond all leaves.
        goal_B: int32, how many items to write.
        temperature: 0 to take the best, else what logits are divided by before a draw.
        key_B: random keys of the rows, one each.
    """

    trie: Trie
    excluded_BY: Array
    goal_B: Array
    temperature: Array
    key_B: jax.Array

    def living(self, node_BX: jax.Array, written_BK: jax.Array) -> jax.Array:
        """Whether a leaf stands below each node that may be written and is not yet."""
        first_BX = jnp.asarray(self.trie.first_leaf_RN)[0, node_BX]
        last_BX = jnp.asarray(self.trie.last_leaf_RN)[0, node_BX]
        before, excluded_BY = jax.vmap(jnp.searchsorted), jnp.asarray(self.excluded_BY)
        excluded_BX = before(excluded_BY, last_BX + 1) - before(excluded_BY, first_BX)
        for leaf_B1 in jnp.split(written_BK, written_BK.shape[1], axis=1):
            excluded_BX += (first_BX <= leaf_B1) & (leaf_B1 <= last_BX)
        return last_BX + 1 - first_BX > excluded_BX


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """Where each row stands.

    Attributes:
        cache: keys and values of the committed tokens; behind them, those of read nodes.
        node_BX: int32, the read nodes in the slots behind the committed tokens; -1 in free slots.
        hidden_BWD: the output at the last token each hypothesis has read.
        at_BW: int32, the node where each hypothesis decides next; a leaf if it is done.
        logp_BW: log-probability of each hypothesis, best first; -inf where there is none.
        next_BW: int32, the next node to read; in a row that reads an item, its place in the path.
        left_BW: int32, how many nodes to read.
        path_BP: int32, the nodes of the item that is read, and of the forced run behind it.
        commits_B: bool, whether an item is read.
        leaf_BK: int32, the leaves written; -1 behind the last.
        logp_BK: their log-probabilities; -inf behind the last.
        count_B: int32, how many are written.
        passes: int32, forward passes one after the other.
    """

    cache: KVCache
    node_BX: jax.Array
    hidden_BWD: jax.Array
    at_BW: jax.Array
    logp_BW: jax.Array
    next_BW: jax.Array
    left_BW: jax.Array
    path_BP: jax.Array
    commits_B: jax.Array
    leaf_BK: jax.Array
    logp_BK: jax.Array
    count_B: jax.Array
    passes: jax.Array


def search(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    trie: Trie,
    excluded_BY: np.ndarray,
    k: int,
    width: int = 1,
    temperature: float = 0.0,
    key_B: jax.Array | None = None,
) -> Slate:
    """Writes the slate of every row from one catalog, item 1, then item 2 given item 1, ….

    Args:
        model: the ranker.
        prompt_tokens_BT: int32, prompts padded on the right; widths in few sizes, since every
            width is compiled.
        prompt_length_B: int32, tokens of each prompt.
        trie: the trie of the catalog, one row.
        excluded_BY: int32, the slots that may not be written in each row; -1 for none.
        k: items to write; rows with fewer allowed write all of those.
        width: hypotheses of an item; 1 takes the best token at every decision.
        temperature: above 0, every token is drawn, and logits are divided by it.
        key_B: for a temperature, a random key for each row.

    Raises:
        ValueError: the trie has not one row; or a temperature without keys or with a wide beam.
    """
    if temperature and (key_B is None or width > 1):
        raise ValueError("sampling needs a key for each row and one hypothesis: give key_B")
    return _run(
        model, prompt_tokens_BT, prompt_length_B, trie, excluded_BY, k, width, temperature, key_B
    )[0]


def best(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    trie: Trie,
    excluded_BY: np.ndarray,
    width: int,
) -> Slate:
    """The `width` most probable next items of a catalog, as far as a beam of that width finds them.

    Arguments and errors as those of `search`. `logp_BK` is log P(item | prompt) over all allowed
    items; with as many hypotheses as items it is what `score` says.
    """
    return _run(model, prompt_tokens_BT, prompt_length_B, trie, excluded_BY, 0, width, 0.0, None)[1]


def _run(
    model: Llama,
    prompt_tokens_BT: Array,
    prompt_length_B: Array,
    trie: Trie,
    excluded_BY: np.ndarray,
    k: int,
    width: int,
    temperature: float,
    key_B: jax.Array | None,
) -> tuple[Slate, Slate]:
    if len(trie.slot_RS) != 1:
        raise ValueError(f"{len(trie.slot_RS)} tries for a catalog")
    B = len(prompt_length_B)
    leaves_BY, allowed_B = _excluded_leaves(trie, np.asarray(excluded_BY))
    rows = _Rows(
        trie,
        leaves_BY,
        goal_B=np.minimum(allowed_B, k or 1),
        temperature=np.array(temperature, np.float32),
        key_B=jax.random.split(jax.random.key(0), B) if key_B is None else key_B,
    )
    graph, weights = nnx.split(model)
    return _search(graph, weights, prompt_tokens_BT, prompt_length_B, rows, k, width)


def _excluded_leaves(trie: Trie, slot_BY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leaves of excluded slots in ascending order, and how many leaves are left, [B]."""
    leaf_S = np.asarray(trie.leaf_RS)[0]
    beyond = np.iinfo(np.int32).max
    leaf_BY = np.where(slot_BY >= 0, leaf_S[np.maximum(slot_BY, 0)], -1)
    leaf_BY = np.sort(np.where(leaf_BY >= 0, leaf_BY, beyond), axis=1)
    # A slot that is named twice is excluded once.
    leaf_BY[:, 1:][leaf_BY[:, 1:] == leaf_BY[:, :-1]] = beyond
    leaf_BY = np.sort(leaf_BY, axis=1).astype(np.int32)
    allowed_B = (leaf_S >= 0).sum() - (leaf_BY < beyond).sum(axis=1)
    return leaf_BY, allowed_B.astype(np.int32)


@partial(jax.jit, static_argnums=(0, 5, 6))
def _search(
    graph: nnx.GraphDef,
    weights: nnx.State,
    prompt_tokens_BT: jax.Array,
    prompt_length_B: jax.Array,
    rows: _Rows,
    k: int,
    width: int,
) -> tuple[Slate, Slate]:
    """The slates, and the hypotheses of the first item when all are done (for k = 0)."""
    model = nnx.merge(graph, weights)
    tokens = max(_TOKENS_PER_PASS, 2 * width)
    writes = k > 0

    def unfinished(state: _State) -> jax.Array:
        return jnp.any(state.count_B < rows.goal_B)

    def step(state: _State) -> _State:
        return _write(rows, writes, _decide(model, rows, _read(model, rows, state, tokens)))

    state = _start(model, rows, prompt_tokens_BT, prompt_length_B, max(k, 1), width, tokens)
    state = _write(rows, writes, _decide(model, rows, state))
    state = jax.lax.while_loop(unfinished, step, state)
    slot_S = jnp.asarray(rows.trie.slot_RS)[0]
    found_BW = jnp.where(
        state.logp_BW > -jnp.inf, jnp.asarray(rows.trie.first_leaf_RN)[0, state.at_BW], -1
    )

    def slots(leaf_BX: jax.Array) -> jax.Array:
        return jnp.where(leaf_BX >= 0, slot_S[leaf_BX], -1)

    slate = Slate(slots(state.leaf_BK), state.logp_BK, state.passes)
    return slate, Slate(slots(found_BW), state.logp_BW, state.passes)


def _start(
    model: Llama,
    rows: _Rows,
    prompt_tokens_BT: jax.Array,
    length_B: jax.Array,
    k: int,
    width: int,
    tokens: int,
) -> _State:
    """Reads the prompts, each with the forced run of the root behind it."""
    B, T = prompt_tokens_BT.shape
    trie, W = rows.trie, width
    run = _root_run(trie)
    tokens_BT = jnp.pad(prompt_tokens_BT, ((0, 0), (0, trie.root_run)))
    behind_BT = jnp.arange(T + trie.root_run) - length_B[:, None] + 1
    forced_BT = jnp.asarray(trie.token_RN)[0, jnp.clip(behind_BT, 0, trie.root_run)]
    tokens_BT = jnp.where((behind_BT > 0) & (behind_BT <= run), forced_BT, tokens_BT)
    length_B = length_B + run
    item = trie.max_depth + trie.root_run
    # The ancestors of W hypotheses, and what a pass reads.
    room = W * trie.max_depth + tokens
    hidden_BTD, cache = model.prefill(
        tokens_BT, length_B, slots=T + trie.root_run + k * item + room
    )
    last_B1D = jnp.take_along_axis(hidden_BTD, length_B[:, None, None] - 1, axis=1)
    zeros_BW = jnp.zeros((B, W), jnp.int32)
    return _State(
        cache=cache,
        node_BX=jnp.full((B, room), -1, jnp.int32),
        hidden_BWD=jnp.repeat(last_B1D, W, axis=1),
        at_BW=zeros_BW + run,
        logp_BW=jnp.full((B, W), -jnp.inf).at[:, 0].set(0.0),
        next_BW=zeros_BW,
        left_BW=zeros_BW,
        path_BP=jnp.zeros((B, item), jnp.int32),
        commits_B=jnp.zeros(B, bool),
        leaf_BK=jnp.full((B, k), -1, jnp.int32),
        logp_BK=jnp.full((B, k), -jnp.inf),
        count_B=jnp.zeros(B, jnp.int32),
        passes=jnp.int32(1),
    )


def _read(model: Llama, rows: _Rows, state: _State, tokens: int) -> _State:
    """Reads up to `tokens` of the nodes that stand before the next decision of each row."""
    # The places of a pass go to the hypotheses in their order, as many as each needs.
    before_BW = jnp.cumsum(state.left_BW, axis=1) - state.left_BW
    taken_BW = jnp.clip(tokens - before_BW, 0, state.left_BW)
    index_Q = jnp.arange(tokens)
    lane_BQ = (before_BW[:, :, None] <= index_Q).sum(axis=1) - 1
    place_BQ = index_Q + jnp.take_along_axis(state.next_BW - before_BW, lane_BQ, axis=1)
    on_path_BQ = jnp.clip(place_BQ, 0, state.path_BP.shape[1] - 1)
    node_BQ = jnp.where(
        state.commits_B[:, None],
        jnp.take_along_axis(state.path_BP, on_path_BQ, axis=1),
        jnp.clip(place_BQ, 0, rows.trie.token_RN.shape[1] - 1),
    )
    count_B = taken_BW.sum(axis=1)
    view, node_BX = _view(rows, state, node_BQ, count_B)
    token_BQ = jnp.asarray(rows.trie.token_RN)[0, node_BQ]
    committed_B = jnp.where(state.commits_B, count_B, 0)
    hidden_BQD, cache = model.extend(token_BQ, committed_B, state.cache, view)
    last_BW = jnp.clip(before_BW + taken_BW - 1, 0, tokens - 1)
    last_BWD = jnp.take_along_axis(hidden_BQD, last_BW[:, :, None], axis=1)
    return replace(
        state,
        cache=cache,
        node_BX=node_BX,
        hidden_BWD=jnp.where(taken_BW[:, :, None] > 0, last_BWD, state.hidden_BWD),
        next_BW=state.next_BW + taken_BW,
        left_BW=state.left_BW - taken_BW,
        passes=state.passes + 1,
    )


def _view(
    rows: _Rows, state: _State, node_BQ: jax.Array, count_B: jax.Array
) -> tuple[View, jax.Array]:
    """How the nodes of a pass are read, and the nodes in the slots behind the committed tokens."""
    cache, commits_B1 = state.cache, state.commits_B[:, None]
    B, Q = node_BQ.shape
    X = state.node_BX.shape[1]
    index_BQ = jnp.broadcast_to(jnp.arange(Q), (B, Q))
    # A read node is kept as long as a hypothesis is below it.
    is_open_BW = ~_is_leaf(rows.trie, state.at_BW) & (state.logp_BW > -jnp.inf) & ~commits_B1
    below_BXW = _is_above(rows.trie, state.node_BX, state.at_BW) & is_open_BW[:, None]
    kept_BX = below_BXW.any(-1)
    free_BQ = jnp.argsort(kept_BX, axis=1)[:, :Q]
    fresh_BQ = jnp.where((index_BQ < count_B[:, None]) & ~commits_B1, node_BQ, -1)
    node_BX = jnp.where(kept_BX, state.node_BX, -1)
    node_BX = node_BX.at[jnp.arange(B)[:, None], free_BQ].set(fresh_BQ)

    rank_BS = jnp.arange(cache.slots) - cache.length_B[:, None]
    in_order_BQS = rank_BS[:, None] <= index_BQ[:, :, None]
    slot_node_BS = jnp.take_along_axis(node_BX, jnp.clip(rank_BS, 0, X - 1), axis=1)
    slot_node_BS = jnp.where(rank_BS < X, slot_node_BS, -1)
    is_above_BQS = jnp.swapaxes(_is_above(rows.trie, slot_node_BS, node_BQ), 1, 2)
    visible_BQS = (rank_BS < 0)[:, None] | jnp.where(
        commits_B1[:, :, None], in_order_BQS, is_above_BQS
    )
    # Hypotheses stand behind the forced run of the root, which is committed.
    behind_BQ = jnp.asarray(rows.trie.depth_RN)[0, node_BQ] - 1 - _root_run(rows.trie)
    start_B1 = cache.length_B[:, None]
    view = View(
        position_BT=start_B1 + jnp.where(commits_B1, index_BQ, behind_BQ),
        slot_BT=start_B1 + jnp.where(commits_B1, index_BQ, free_BQ),
        visible_BTS=visible_BQS,
    )
    return view, node_BX


def _is_above(trie: Trie, upper_BX: jax.Array, lower_BY: jax.Array) -> jax.Array:
    """Whether each upper node (-1 for none) is each lower one or an ancestor of it, [B, X, Y]."""
    first_N, last_N = jnp.asarray(trie.first_leaf_RN)[0], jnp.asarray(trie.last_leaf_RN)[0]
    depth_N = jnp.asarray(trie.depth_RN)[0]
    upper_BX1, lower_B1Y = upper_BX[:, :, None], lower_BY[:, None]
    return (
        (first_N[upper_BX1] <= first_N[lower_B1Y])
        & (last_N[lower_B1Y] <= last_N[upper_BX1])
        & (depth_N[upper_BX1] <= depth_N[lower_B1Y])
        & (upper_BX1 >= 0)
    )


def _is_leaf(trie: Trie, node_BX: jax.Array) -> jax.Array:
    return jnp.asarray(trie.num_children_RN)[0, node_BX] == 0


def _root_run(trie: Trie) -> jax.Array:
    return jnp.asarray(trie.run_RN)[0, 0]


def _decide(model: Llama, rows: _Rows, state: _State) -> _State:
    """Goes down a branch with every hypothesis of the rows that have read all they had to."""
    trie = rows.trie
    B, W = state.at_BW.shape
    child_BWF, is_child_BWF = _children(trie, state.at_BW)
    F = child_BWF.shape[2]
    living_BWF = rows.living(child_BWF.reshape(B, -1), state.leaf_BK).reshape(B, W, F)
    logit_BWF = _logits(model, state.hidden_BWD, jnp.asarray(trie.token_RN)[0, child_BWF])
    logit_BWF = jnp.where(is_child_BWF & living_BWF, logit_BWF, DEAD)
    step_BWF = jnp.where(logit_BWF > DEAD, jax.nn.log_softmax(logit_BWF), -jnp.inf)
    # A hypothesis that is done stays as it is, as its own first child.
    done_BW = _is_leaf(trie, state.at_BW)
    itself_F = jnp.where(jnp.arange(F) == 0, 0.0, -jnp.inf)
    step_BWF = jnp.where(done_BW[:, :, None], itself_F, step_BWF)
    logp_BWF = state.logp_BW[:, :, None] + step_BWF
    merit_BWF = jnp.where(rows.temperature > 0, _drawn(rows, logit_BWF, state.passes), logp_BWF)
    _, choice_BW = jax.lax.top_k(merit_BWF.reshape(B, -1), W)
    parent_BW = choice_BW // F

    def take(values_BWF: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_BWF.reshape(B, -1), choice_BW, axis=1)

    def inherit(values_BW: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_BW, parent_BW, axis=1)

    logp_BW, child_BW = take(logp_BWF), take(child_BWF)
    stays_BW = inherit(done_BW) | (logp_BW == -jnp.inf)
    run_BW = jnp.asarray(trie.run_RN)[0, child_BW]
    at_BW = jnp.where(stays_BW, inherit(state.at_BW), child_BW + run_BW)
    # With one leaf below, all the rest of the item is forced and need not be read.
    settled_BW = stays_BW | _is_leaf(trie, at_BW)
    decides_B1 = ((state.left_BW.sum(axis=1) == 0) & (state.count_B < rows.goal_B))[:, None]
    return replace(
        state,
        at_BW=jnp.where(decides_B1, at_BW, state.at_BW),
        logp_BW=jnp.where(decides_B1, logp_BW, state.logp_BW),
        next_BW=jnp.where(decides_B1, child_BW, state.next_BW),
        left_BW=jnp.where(decides_B1, jnp.where(settled_BW, 0, 1 + run_BW), state.left_BW),
        commits_B=state.commits_B & ~decides_B1[:, 0],
    )


def _write(rows: _Rows, writes: bool, state: _State) -> _State:
    """Writes the best hypothesis of every row if it is done, and has its tokens read next.

    Without `writes`, a row ends when all its hypotheses are done.
    """
    trie, K = rows.trie, state.leaf_BK.shape[1]
    done_BW = _is_leaf(trie, state.at_BW)
    if not writes:
        over_B = (done_BW | (state.logp_BW == -jnp.inf)).all(axis=1)
        return replace(state, count_B=jnp.where(over_B, rows.goal_B, state.count_B))
    writes_B = done_BW[:, 0] & (state.count_B < rows.goal_B)
    here_BK = writes_B[:, None] & (jnp.arange(K) == state.count_B[:, None])
    leaf_B1 = jnp.asarray(trie.first_leaf_RN)[0, state.at_BW[:, :1]]
    count_B = state.count_B + writes_B
    path_BP, length_B = _path(trie, state.at_BW[:, 0], state.path_BP.shape[1])
    left_B = jnp.where(count_B < rows.goal_B, length_B, 0)
    is_first_W = jnp.arange(state.at_BW.shape[1]) == 0
    writes_B1 = writes_B[:, None]
    return replace(
        state,
        at_BW=jnp.where(writes_B1, _root_run(trie), state.at_BW),
        logp_BW=jnp.where(writes_B1, jnp.where(is_first_W, 0.0, -jnp.inf), state.logp_BW),
        next_BW=jnp.where(writes_B1, 0, state.next_BW),
        left_BW=jnp.where(writes_B1, is_first_W * left_B[:, None], state.left_BW),
        path_BP=jnp.where(writes_B1, path_BP, state.path_BP),
        commits_B=state.commits_B | writes_B,
        leaf_BK=jnp.where(here_BK, leaf_B1, state.leaf_BK),
        logp_BK=jnp.where(here_BK, state.logp_BW[:, :1], state.logp_BK),
        count_B=count_B,
    )


def _path(trie: Trie, leaf_B: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """The nodes from the root's forced run on to a leaf, then that run again; and their number.

    The run before the item is committed already.
    """
    parent_N, depth_N = jnp.asarray(trie.parent_RN)[0], jnp.asarray(trie.depth_RN)[0]
    run = _root_run(trie)
    length_B = depth_N[leaf_B] - run
    index_P = jnp.arange(width)

    def up(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node_B, path_BP = state
        here_BP = index_P == (depth_N[node_B] - run - 1)[:, None]
        return parent_N[node_B], jnp.where(here_BP, node_B[:, None], path_BP)

    again_BP = index_P - length_B[:, None] + 1
    _, path_BP = jax.lax.fori_loop(0, trie.max_depth, up, (leaf_B, again_BP))
    return jnp.maximum(path_BP, 0), length_B + run


def _children(trie: Trie, at_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The children of each node, [B, W, F], and which of the F are there."""
    offset_F = jnp.arange(trie.max_children)
    is_child_BWF = offset_F < jnp.asarray(trie.num_children_RN)[0, at_BW][:, :, None]
    place_BWF = jnp.asarray(trie.first_child_RN)[0, at_BW][:, :, None] + offset_F
    return jnp.asarray(trie.level_RN)[0, jnp.where(is_child_BWF, place_BWF, 0)], is_child_BWF


def _logits(model: Llama, hidden_BWD: jax.Array, token_BWF: jax.Array) -> jax.Array:
    """Logits of some tokens behind each hypothesis, [B, W, F]."""
    # Gathering rows of the LM head moves less memory than reading all V of it, or more.
    if token_BWF.size >= model.config.vocab_size:
        return jnp.take_along_axis(model.logits(hidden_BWD), token_BWF, axis=2)
    head_BWFD = model.head_weights()[token_BWF]
    return jnp.einsum("BWD,BWFD->BWF", hidden_BWD, head_BWFD, preferred_element_type=jnp.float32)


def _drawn(rows: _Rows, logit_BWF: jax.Array, passes: jax.Array) -> jax.Array:
    """Logits with Gumbel noise: the largest is a draw from their softmax at the temperature."""

    def row(key: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, passes), logit_BWF.shape[1:])

    safe = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    return logit_BWF / safe + jax.vmap(row)(jnp.asarray(rows.key_B))
