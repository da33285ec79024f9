"""The retrievers that see a history as a set: a vector per user, a vector per item, and a match.

Users need not be in the training data: a user's vector is *folded in*, that is, fitted to the
history by the training loss while all other parameters are fixed.

Shapes: B users or interactions of a batch, S items of a history, padded, K items to match, X width
of a user's or an item's vector.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypedDict, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.io.files import read_arrays, write_arrays
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking, loop
from palr_jax.retrieval.base import ScoringRetriever
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer
from palr_jax.retrieval.losses import compare
from palr_jax.retrieval.step import Params, Rates, RetrieverState
from palr_jax.trees import PyTree, State, split_off

_FILE = "vectors.npz"
# Few small steps, because a long fit to few items overfits.
_FOLD_STEPS = 24
_FOLD_RATE = 0.1  # times the standard deviation of the item vectors
_FOLD_LENGTH = 1024  # the fit uses this many newest items of a history

PairLoss = Literal["bce", "gbce", "bpr"]


class Edges(NamedTuple):
    """The training interactions: user_N[n] with item_N[n]; both int32."""

    user_N: np.ndarray
    item_N: np.ndarray


class Vectors(NamedTuple):
    """The vectors that a network computes from its parameters.

    Attributes:
        own_UX: the learned part of the user vectors.
        user_UX: the user vectors: the learned part plus the context of the user's items.
        item_IX: the item vectors.
        context_IX: what an item adds to the users whose history holds it, before division by the
            square root of the history's length.
    """

    own_UX: jax.Array
    user_UX: jax.Array
    item_IX: jax.Array
    context_IX: jax.Array


class Queries(TypedDict):
    """Users to match with items.

    Attributes:
        user_BX: the user vectors.
        weights: other parameters that a match needs.
    """

    user_BX: jax.Array
    weights: dict[str, jax.Array]


class PairNetwork(Protocol):
    """The interface of a Flax NNX module that matches users with items.

    A user vector is the sum of a learned vector and the context of the history's items.
    """

    loss: PairLoss
    """The default training loss."""

    def __init__(
        self, config: RetrieverConfig, edges: Edges, num_users: int, num_items: int, rngs: nnx.Rngs
    ) -> None:
        """A network with fresh parameters."""

    def vectors(self) -> Vectors:
        """The vectors of all users and items."""

    def weights(self) -> dict[str, jax.Array]:
        """Other parameters that a match needs."""

    @staticmethod
    def match(weights: dict[str, jax.Array], user_BX: jax.Array, item_BKX: jax.Array) -> jax.Array:
        """The scores of K items for each user: [B, K]."""

    @staticmethod
    def match_all(queries: Queries, item_CX: jax.Array) -> jax.Array:
        """The scores of the same C items for all users: [B, C]."""


class Fitted(NamedTuple):
    """The results of training that recommending needs.

    Attributes:
        item_IX: the item vectors.
        context_IX: what an item adds to the users whose history holds it.
        prior_X: the learned part of a user without history: the mean over all users.
        weights: other parameters that a match needs.
    """

    item_IX: jax.Array
    context_IX: jax.Array
    prior_X: jax.Array
    weights: dict[str, jax.Array]


class Pairwise(ScoringRetriever):
    """A retriever that trains a `PairNetwork` and matches items with folded-in users."""

    def __init__(
        self, network: type[PairNetwork], config: RetrieverConfig, num_items: int, seed: int
    ) -> None:
        super().__init__(num_items)
        self._network = network
        self._config = config
        self._seed = seed
        self._loss: PairLoss = _pair_loss(config, network)
        zero_I1 = jnp.zeros((num_items, 1))
        self._fitted = Fitted(zero_I1, zero_I1, zero_I1[0], {})

    def fit(self, split: Split, directory: Path) -> None:
        """Trains until the validation NDCG@10 has not improved for `patience` epochs."""
        config, num_items = self._config, self._num_items
        histories, target_U = split.histories("validation"), split.targets("validation")
        user_N = np.repeat(np.arange(split.num_users, dtype=np.int32), split.train.lengths_R)
        edges = Edges(user_N, split.train.values_N)
        made = self._network(config, edges, split.num_users, num_items, nnx.Rngs(self._seed))
        graph, trained, constants = split_off(made, nnx.Param)
        params = nnx.to_pure_dict(trained)
        rates = Rates(config.learning_rate, config.weight_decay, config.averaging)
        size = min(config.batch_size, max(len(user_N), 1))

        def validation_ranks(params: Params) -> np.ndarray:
            scorer = self._scorer_of(_fitted(graph, params, constants))
            return full_ranking.ranks(scorer, histories, target_U, num_items)

        def batches(epoch: int) -> list[Edges]:
            rng = np.random.default_rng([self._seed, epoch])
            # Repeats interactions of the same epoch, so that every batch is full.
            order_N = np.resize(rng.permutation(len(user_N)), -(-len(user_N) // size) * size)
            return loop.cut(Edges(edges.user_N[order_N], edges.item_N[order_N]), size)

        step = functools.partial(_train_step, graph, self._loss, config.negatives, rates, constants)
        params = loop.train(
            params, step, batches, config, split, self._seed, directory, validation_ranks
        )
        fitted = _fitted(graph, params, constants)
        write_arrays(
            directory / _FILE,
            item_IX=fitted.item_IX, context_IX=fitted.context_IX, prior_X=fitted.prior_X,
            **fitted.weights,
        )  # fmt: skip
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Loads the vectors with the best validation NDCG@10."""
        loop.check_finished(directory, loop.settings(self._config, self._num_items, self._seed))
        arrays = read_arrays(directory / _FILE)
        item_IX, context_IX, prior_X = (
            jnp.asarray(arrays.pop(name)) for name in ("item_IX", "context_IX", "prior_X")
        )
        weights = {name: jnp.asarray(array) for name, array in arrays.items()}
        self._fitted = Fitted(item_IX, context_IX, prior_X, weights)

    def _scorer(self) -> Scorer:
        return self._scorer_of(self._fitted)

    def _scorer_of(self, fitted: Fitted) -> Scorer:
        def queries(part: Ragged) -> Queries:
            width = min(full_ranking.bucket(int(part.lengths_R.max(initial=1))), _FOLD_LENGTH)
            history_BS = part.last(width, fill=self._num_items)
            user_BX = fold_in(self._network.match, self._loss, fitted, history_BS)
            return {"user_BX": user_BX, "weights": fitted.weights}

        return Scorer(queries, fitted.item_IX, self._network.match_all)


class InnerProduct(nnx.Module):
    """The part of a `PairNetwork` that says: a score is the inner product of both vectors."""

    def weights(self) -> dict[str, jax.Array]:
        """Empty: a match needs no other parameters."""
        return {}

    @staticmethod
    def match(weights: dict[str, jax.Array], user_BX: jax.Array, item_BKX: jax.Array) -> jax.Array:
        """The scores of K items for each user: [B, K]."""
        return jnp.einsum("bx,bkx->bk", user_BX, item_BKX)

    @staticmethod
    def match_all(queries: Queries, item_CX: jax.Array) -> jax.Array:
        """The scores of the same C items for all users: [B, C]."""
        return queries["user_BX"] @ item_CX.T


@functools.partial(jax.jit, static_argnames=("match", "loss"))
def fold_in(
    match: Callable[[dict[str, jax.Array], jax.Array, jax.Array], jax.Array],
    loss: PairLoss,
    fitted: Fitted,
    history_BS: jax.Array,
) -> jax.Array:
    """Vectors of users with these histories: [B, X]. A user's vector does not depend on the batch.

    Args:
        match: the network's `match`.
        loss: the loss that the vectors are fitted with.
        fitted: the trained parameters.
        history_BS: items; short histories are padded with I.
    """
    num_items, width = fitted.item_IX.shape
    seen_BS = history_BS < num_items
    length_B1 = jnp.maximum(seen_BS.sum(1, keepdims=True), 1)
    take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
    seen_BSX = take(fitted.item_IX, history_BS)
    context_BX = take(fitted.context_IX, history_BS).sum(1) * length_B1**-0.5

    def objective(own_BX: jax.Array, key: jax.Array) -> jax.Array:
        negative_S = jax.random.randint(key, history_BS.shape[1:], 0, num_items)
        other_BSX = jnp.broadcast_to(fitted.item_IX[negative_S], seen_BSX.shape)
        user_BX = own_BX + context_BX
        wanted_N = match(fitted.weights, user_BX, seen_BSX).reshape(-1)
        other_N1 = match(fitted.weights, user_BX, other_BSX).reshape(-1, 1)
        loss_BS = compare(loss, wanted_N, other_N1, num_items).reshape(seen_BS.shape)
        return jnp.sum(jnp.where(seen_BS, loss_BS, 0) / length_B1)

    optimizer = optax.adam(_FOLD_RATE * jnp.std(fitted.item_IX))

    def advance(
        index: jax.Array, state: tuple[jax.Array, optax.OptState]
    ) -> tuple[jax.Array, optax.OptState]:
        own_BX, moments = state
        update_BX: PyTree
        gradient_BX = jax.grad(objective)(own_BX, jax.random.fold_in(jax.random.key(0), index))
        update_BX, moments = optimizer.update(gradient_BX, moments)
        return own_BX + update_BX, moments

    own_BX = jnp.broadcast_to(fitted.prior_X, (len(history_BS), width))
    own_BX, _ = jax.lax.fori_loop(0, _FOLD_STEPS, advance, (own_BX, optimizer.init(own_BX)))
    return own_BX + context_BX


@functools.partial(jax.jit, static_argnames=("graph", "loss", "negatives"), donate_argnames="state")
def _train_step(
    graph: nnx.GraphDef[PairNetwork],
    loss: PairLoss,
    negatives: int,
    rates: Rates,
    constants: State,
    state: RetrieverState,
    batch: Edges,
    key: jax.Array,
) -> tuple[RetrieverState, jax.Array]:
    """The state after one update, and the loss before it. `state` is donated."""

    def loss_at(params: Params) -> jax.Array:
        network = nnx.merge(graph, params, constants)
        vectors = network.vectors()
        num_items = len(vectors.item_IX)
        negative_BK = jax.random.randint(key, (len(batch.user_N), negatives), 0, num_items)
        shown_BK = jnp.concatenate([batch.item_N[:, None], negative_BK], axis=1)
        score_BK = network.match(
            network.weights(), vectors.user_UX[batch.user_N], vectors.item_IX[shown_BK]
        )
        hit_BK = negative_BK == batch.item_N[:, None]
        other_BK = jnp.where(hit_BK, -jnp.inf, score_BK[:, 1:])
        return compare(loss, score_BK[:, 0], other_BK, num_items).mean()

    value, gradient = jax.value_and_grad(loss_at)(state.params)
    return state.after(gradient, rates), value


@functools.partial(jax.jit, static_argnames="graph")
def _fitted(graph: nnx.GraphDef[PairNetwork], params: Params, constants: State) -> Fitted:
    network = nnx.merge(graph, params, constants)
    vectors = network.vectors()
    prior_X = vectors.own_UX.mean(axis=0)
    return Fitted(vectors.item_IX, vectors.context_IX, prior_X, network.weights())


def _pair_loss(config: RetrieverConfig, network: type[PairNetwork]) -> PairLoss:
    kind = config.loss or network.loss
    if kind not in get_args(PairLoss):
        raise UserError(
            f"retriever.loss: {config.model} is trained with bce, gbce or bpr, not {kind}"
        )
    return cast(PairLoss, kind)
