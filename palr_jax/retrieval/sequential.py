"""The sequential retrievers: predict the next item of a history with some network.

Letters: B users of a chunk, T places of a row, D width, U users, I items.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from palr_jax.data.split import Split
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking, loop
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer
from palr_jax.retrieval.interface import TopK
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.rows import Layout, Rows
from palr_jax.retrieval.step import Params, Rates, TrainState, places, train_step
from palr_jax.sharding import MeshConfig, Shards, make_mesh


class Sequential:
    """A retriever around a network, made as `network(config, num_items, rngs)`."""

    def __init__(
        self,
        network: Callable[[RetrieverConfig, int, nnx.Rngs], nnx.Module],
        layout: Layout,
        config: RetrieverConfig,
        num_items: int,
        seed: int,
    ) -> None:
        self._config = config
        self._layout = layout
        self._num_items = num_items
        self._seed = seed
        self._network = network
        abstract = nnx.eval_shape(lambda: network(config, num_items, nnx.Rngs(seed)))
        self._graph, self._shapes = nnx.split(abstract, nnx.Param)

    @functools.cached_property
    def _params(self) -> Params:
        """Those of a fresh network, until others are trained or loaded: these need no drawing."""
        network = self._network(self._config, self._num_items, nnx.Rngs(self._seed))
        return nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])

    def fit(self, split: Split, directory: Path) -> None:
        """Trains until the validation NDCG@10 has not risen for `patience` epochs.

        Besides the checkpoints, `directory` gets settings.json and curve.jsonl, one line an epoch.
        """
        config = self._config
        histories, target_U = split.histories("validation"), split.targets("validation")

        def validation_ranks(params: Params) -> np.ndarray:
            return full_ranking.ranks(self._scorer(params), histories, target_U, self._num_items)

        def batches(epoch: int) -> list[Rows]:
            rows = self._layout.training(
                split.train, split.num_items, config.length, config.batch_size, self._seed, epoch
            )
            return loop.cut(rows, config.batch_size)

        loss = Loss(config.loss or "cross_entropy", config.negatives)
        rates = Rates(config.learning_rate, config.weight_decay, config.averaging)
        step: loop.Step = functools.partial(train_step, self._graph, loss, rates)
        if config.devices > 1:
            mesh = make_mesh(MeshConfig(fsdp=config.devices), jax.local_devices()[: config.devices])
            step = _divided(step, Shards(mesh))
        self._params = loop.train(
            self._params, step, batches, config, split, self._seed, directory, validation_ranks
        )
        # As `load` gives them, so that what is recommended is the same to the bit.
        self._params = jax.device_put(self._params, jax.local_devices()[0])

    def load(self, directory: Path) -> None:
        """Takes over the parameters with the best validation NDCG@10."""
        settings = loop.settings(self._config, self._num_items, self._seed)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            nnx.to_pure_dict(self._shapes),
        )
        self._params = loop.load_best(shapes, settings, directory)

    def scores(self, histories: Ragged) -> jax.Array:
        """Inner products of all items with the state after the newest item.

        A history longer than `length` counts by its newest items. An empty history is scored from
        what the model has learned that users begin with.
        """
        return full_ranking.scores(self._scorer(self._params), histories, self._num_items)

    def recommend(self, histories: Ragged, k: int) -> TopK:
        """The unseen items with the highest scores."""
        return full_ranking.recommend(self._scorer(self._params), histories, k, self._num_items)

    def target_ranks(self, histories: Ragged, target_U: np.ndarray) -> np.ndarray:
        """Ranks by score."""
        scorer = self._scorer(self._params)
        return full_ranking.ranks(scorer, histories, target_U, self._num_items)

    def item_vectors(self) -> np.ndarray:
        """What items are scored with: float32 [I, D]."""
        return np.asarray(_items(self._graph, self._params), np.float32)

    def _scorer(self, params: Params) -> Scorer:
        def queries(part: Ragged) -> jax.Array:
            length = min(self._config.length, _width(int(part.lengths_R.max()) + 1))
            return _newest(
                self._graph, params, self._layout.inference(part, self._num_items, length)
            )

        items_ID = _items(self._graph, params)
        return Scorer(queries, items_ID, full_ranking.inner_product)


def _width(length: int) -> int:
    """The least of 8, 12, 16, 24, 32, 48, 64, 96, … that holds `length`.

    Beyond 8, a third of the places at most is empty; few widths leave few programs to compile.
    """
    power = max(8, 1 << (length - 1).bit_length())
    return power * 3 // 4 if 8 < length <= power * 3 // 4 else power


def _divided(step: Callable[..., tuple[TrainState, jax.Array]], shards: Shards) -> loop.Step:
    """The same step over the devices of a mesh."""

    def divided(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, jax.Array]:
        # At first, and when training goes on, all of the state is on one device.
        state = jax.device_put(state, places(state, shards))
        return step(state, shards.spread(rows), key, shards=shards)

    return divided


@functools.partial(jax.jit, static_argnums=0)
def _newest(graph: nnx.GraphDef, params: Params, rows: Rows) -> jax.Array:
    """The vector at the right end of each row: [B, D]."""
    return nnx.merge(graph, params)(rows, None, newest=1)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _items(graph: nnx.GraphDef, params: Params) -> jax.Array:
    """[I, D]."""
    return nnx.merge(graph, params).output_items()
