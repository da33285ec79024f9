"""The sequential retrievers: a network predicts the next item of a history."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.data.split import Split
from palr_jax.padding import to_power_of_two
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking, loop
from palr_jax.retrieval.base import ScoringRetriever
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer
from palr_jax.retrieval.item_network import FEATURES, scaled_features
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.rows import HistoryRows, Objective
from palr_jax.retrieval.step import (
    Network,
    Params,
    Rates,
    RetrieverState,
    retriever_shardings,
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
        abstract = nnx.eval_shape(lambda: network(config, num_items, nnx.Rngs(seed)))
        self._graph, self._shapes = nnx.split(abstract, nnx.Param)

    @functools.cached_property
    def _params(self) -> Params:
        """Those of a fresh network, until others are trained or loaded: these need no drawing."""
        network = self._network(self._config, self._num_items, nnx.Rngs(self._seed))
        return nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])

    def use_features(self, feature_IR: np.ndarray) -> None:
        """Sets the features of all items, before `fit`; a checkpoint holds them.

        Args:
            feature_IR: of every item, at most `item_network.WIDTH` wide.
        """
        self._feature_IR = feature_IR
        self._params = self._params | {FEATURES: jnp.asarray(scaled_features(feature_IR))}

    def fit(self, split: Split, directory: Path) -> None:
        """Trains until the validation NDCG@10 has not improved for `patience` epochs.

        Writes checkpoints, settings.json and curve.jsonl (one line per epoch) to `directory`.

        Raises:
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

        loss = Loss(config.loss or "cross_entropy", config.negatives)
        rates = Rates(config.learning_rate, config.weight_decay, config.averaging)
        step: loop.Step = functools.partial(retriever_step, self._graph, loss, rates)
        if config.devices > 1:
            mesh = make_mesh(MeshConfig(fsdp=config.devices), jax.local_devices()[: config.devices])
            step = _sharded(step, Shards(mesh))
        self._params = loop.train(
            self._params, step, batches, config, split, self._seed, directory, validation_ranks,
            self._feature_IR,
        )  # fmt: skip
        # On one device as after `load`, so that recommendations are bitwise the same.
        self._params = jax.device_put(self._params, jax.local_devices()[0])

    def load(self, directory: Path) -> None:
        """Loads the parameters with the best validation NDCG@10."""
        settings = loop.settings(self._config, self._num_items, self._seed)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            nnx.to_pure_dict(self._shapes),
        )
        self._params = loop.load_best(shapes, settings, directory)

    def item_vectors(self) -> np.ndarray:
        """The item vectors of the output layer: float32 [I, D]."""
        return np.asarray(_items(self._graph, self._params), np.float32)

    def _scorer(self) -> Scorer:
        return self._scorer_of(self._params)

    def _scorer_of(self, params: Params) -> Scorer:
        def queries(part: Ragged) -> jax.Array:
            length = min(self._config.length, _width(int(part.lengths_R.max()) + 1))
            return _newest(
                self._graph, params, self._objective.inference(part, self._num_items, length)
            )

        items_ID = _items(self._graph, params)
        return Scorer(queries, items_ID, full_ranking.inner_product)


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
        # The initial state, and one loaded from a checkpoint, are on a single device.
        state = jax.device_put(state, retriever_shardings(state, shards))
        return step(state, shards.spread(rows), key, shards=shards)

    return sharded


@functools.partial(jax.jit, static_argnums=0)
def _newest(graph: nnx.GraphDef[Network], params: Params, rows: HistoryRows) -> jax.Array:
    """The vector of the last column of each row: [B, D]."""
    return nnx.merge(graph, params)(rows, None, newest=1)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _items(graph: nnx.GraphDef[Network], params: Params) -> jax.Array:
    """The item vectors: [I, D]."""
    return nnx.merge(graph, params).output_items()
