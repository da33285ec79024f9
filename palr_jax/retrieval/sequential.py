"""The sequential retrievers: a network predicts the next item of a history."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from palr_jax.data.split import Split
from palr_jax.padding import to_power_of_two
from palr_jax.parallel.sharding import Shards, fetch
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking, loop, sharded
from palr_jax.retrieval.base import ScoringRetriever
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer
from palr_jax.retrieval.item_network import FEATURES, scaled_features
from palr_jax.retrieval.item_tables import retriever_shardings
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.rows import HistoryRows, Objective
from palr_jax.retrieval.step import (
    Network,
    Params,
    Rates,
    RetrieverState,
    initial_state,
    retriever_step,
)


class Sequential(ScoringRetriever):
    """A retriever that trains and uses a network, made as `network(config, num_items, rngs)`.

    Scores are inner products of the items with the prediction after the newest item. Only the
    newest `length` items of a history count. An empty history gets the prediction of users' first
    items.
    """

    def __init__(
        self,
        network: Callable[[RetrieverConfig, int, nnx.Rngs], Network],
        objective: Objective,
        config: RetrieverConfig,
        num_items: int,
        seed: int,
    ) -> None:
        super().__init__(num_items)
        self._config = config
        self._objective = objective
        self._seed = seed
        self._network = network
        self._feature_IR: np.ndarray | None = None
        self._shards: Shards | None = None  # where parameters are divided over several devices
        abstract = nnx.eval_shape(lambda: network(config, num_items, nnx.Rngs(seed)))
        self._graph, self._shapes = nnx.split(abstract, nnx.Param)

    @functools.cached_property
    def _params(self) -> Params:
        """Those of a fresh network, until others are trained or loaded: these need no drawing."""
        params = self._drawn()
        if self._feature_IR is not None:
            params[FEATURES] = jnp.asarray(scaled_features(self._feature_IR))
        return params

    def _drawn(self) -> Params:
        network = self._network(self._config, self._num_items, nnx.Rngs(self._seed))
        params: Params = nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])
        return params

    def _drawn_on(self, shards: Shards) -> Params:
        """The same, each part drawn on the device of a mesh that keeps it."""
        placed = retriever_shardings(nnx.to_pure_dict(self._shapes), shards)
        params: Params = jax.jit(self._drawn, out_shardings=placed)()
        if self._feature_IR is not None:
            feature_IR = scaled_features(self._feature_IR)
            params[FEATURES] = jax.make_array_from_callback(
                feature_IR.shape, placed[FEATURES], lambda index: feature_IR[index]
            )
        return params

    def use_features(self, feature_IR: np.ndarray) -> None:
        """Sets the features of all items, before `fit`; a checkpoint holds them.

        Args:
            feature_IR: of every item, at most `item_network.WIDTH` wide.
        """
        self._feature_IR = feature_IR
        self.__dict__.pop("_params", None)  # drawn anew, with these features

    def fit(self, split: Split, directory: Path) -> None:
        """Trains until the validation NDCG@10 has not improved for `patience` epochs.

        Writes checkpoints, settings.json and curve.jsonl (one line per epoch) to `directory`.
        With several processes, all must call this.

        Raises:
            UserError: `config.devices` is not the number of devices of all processes, or as
                `loop.train`.
            ValueError: the configured features are not set.
        """
        config = self._config
        if config.item_features != "none" and self._feature_IR is None:
            raise ValueError("retriever.item_features is configured: call use_features first")
        histories, target_U = split.histories("validation"), split.targets("validation")

        def validation_ranks(params: Params) -> np.ndarray:
            return full_ranking.ranks(self._scorer_of(params), histories, target_U, self._num_items)

        def batches(epoch: int) -> list[HistoryRows]:
            rows = self._objective.training(
                split.train, split.num_items, config.length, config.batch_size, self._seed, epoch
            )
            return loop.cut(rows, config.batch_size)

        step: loop.Step = functools.partial(retriever_step, self._graph, self._loss, self._rates)
        begin: Callable[[Params], RetrieverState] = initial_state
        if config.devices > 1:
            shards = self._shards = Shards(sharded.mesh_of(config))
            self._params = self._drawn_on(shards)
            step = _sharded(step, shards)
            begin = functools.partial(initial_state, shards=shards)
        self._params = loop.train(
            self._params, step, batches, config, split, self._seed, directory, validation_ranks,
            self._feature_IR, begin,
        )  # fmt: skip

    def lowered_step(
        self, shards: Shards
    ) -> tuple[jax.stages.Lowered, RetrieverState, HistoryRows]:
        """The training step for the devices of a mesh, which need not be there.

        Returns:
            The step, the shapes of its state and those of a batch, with shardings.
        """
        config = self._config
        state = jax.eval_shape(RetrieverState.initial, nnx.to_pure_dict(self._shapes))
        state = jax.tree.map(_shape, state, retriever_shardings(state, shards))
        size = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
        row_RT = _shape(size, shards.of("batch", None))
        rows = HistoryRows(row_RT, row_RT, row_RT)  # type: ignore[arg-type]  # shapes of arrays
        key = _shape(jax.eval_shape(jax.random.key, 0), shards.of())
        lowered = retriever_step.lower(
            self._graph, self._loss, self._rates, state, rows, key,
            shards=None if shards.is_one_device else shards,
        )  # fmt: skip
        return lowered, state, rows

    @property
    def _loss(self) -> Loss:
        return Loss(self._config.loss or "cross_entropy", self._config.negatives)

    @property
    def _rates(self) -> Rates:
        config = self._config
        return Rates(config.learning_rate, config.weight_decay, config.averaging)

    def load(self, directory: Path) -> None:
        """Loads the parameters with the best validation NDCG@10, on one device."""
        self._shards = None
        settings = loop.settings(self._config, self._num_items, self._seed)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            nnx.to_pure_dict(self._shapes),
        )
        self._params = loop.load_best(shapes, settings, directory)

    def item_vectors(self) -> np.ndarray:
        """The item vectors of the output layer: float32 [I, D]."""
        vectors = self._scorer().items
        return np.asarray(fetch(vectors), np.float32)[: self._num_items]

    def _scorer(self) -> Scorer:
        return self._scorer_of(self._params)

    def _scorer_of(self, params: Params) -> Scorer:
        shards = self._shards

        def rows_of(part: Ragged) -> HistoryRows:
            length = min(self._config.length, _width(int(part.lengths_R.max()) + 1))
            return self._objective.inference(part, self._num_items, length)

        if shards is None:
            return Scorer(
                lambda part: _newest(self._graph, params, rows_of(part)),
                _items(self._graph, params),
                full_ranking.inner_product,
            )

        devices = tuple(shards.mesh.devices.flat)
        count = full_ranking.padded(self._num_items, len(devices))
        return Scorer(
            lambda part: sharded.newest(self._graph, shards, params, rows_of(part)),
            sharded.items(self._graph, shards, count, params),
            full_ranking.inner_product,
            devices,
        )


def _width(length: int) -> int:
    """The smallest of 8, 12, 16, 24, 32, 48, 64, 96, … that is at least `length`.

    Beyond 8, at most a third of the columns is padding; few widths mean few compilations.
    """
    power = to_power_of_two(max(length, 1), 8)
    return power * 3 // 4 if 8 < length <= power * 3 // 4 else power


def _sharded(step: Callable[..., tuple[RetrieverState, jax.Array]], shards: Shards) -> loop.Step:
    """The same step over the devices of a mesh."""

    def sharded(
        state: RetrieverState, rows: HistoryRows, key: jax.Array
    ) -> tuple[RetrieverState, jax.Array]:
        return step(state, shards.spread(rows), key, shards=shards)

    return sharded


def _shape(leaf: jax.ShapeDtypeStruct, at: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)


@functools.partial(jax.jit, static_argnums=0)
def _newest(graph: nnx.GraphDef[Network], params: Params, rows: HistoryRows) -> jax.Array:
    """The vector of the last column of each row: [B, D]."""
    return nnx.merge(graph, params)(rows, None, newest=1)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _items(graph: nnx.GraphDef[Network], params: Params) -> jax.Array:
    """The item vectors: [I, D]."""
    return nnx.merge(graph, params).output_items()
