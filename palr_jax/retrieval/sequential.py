"""The sequential retrievers: predict the next item of a history with some network.

Letters: B users of a chunk, T places of a row, D width, U users, I items.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.data.split import Split
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking, loop
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.interface import TopK
from palr_jax.retrieval.rows import Rows, inference_rows
from palr_jax.retrieval.step import Params


class Sequential:
    """A retriever around a network, made as `network(config, num_items, rngs)`."""

    def __init__(
        self,
        network: Callable[[RetrieverConfig, int, nnx.Rngs], nnx.Module],
        config: RetrieverConfig,
        num_items: int,
        seed: int,
    ) -> None:
        self._config = config
        self._num_items = num_items
        self._seed = seed
        self._graph, params = nnx.split(network(config, num_items, nnx.Rngs(seed)), nnx.Param)
        self._params: Params = nnx.to_pure_dict(params)

    def fit(self, split: Split, directory: Path) -> None:
        """Trains until the validation NDCG@10 has not risen for `patience` epochs.

        Besides the checkpoints, `directory` gets settings.json and curve.jsonl, one line an epoch.
        """
        histories, target_U = split.histories("validation"), split.targets("validation")

        def validation_ranks(params: Params) -> np.ndarray:
            scores = functools.partial(self._scores, params)
            return full_ranking.ranks(scores, histories, target_U, self._num_items)

        self._params = loop.train(
            self._graph, self._params, self._config, split, self._seed, directory, validation_ranks
        )

    def load(self, directory: Path) -> None:
        """Takes over the parameters with the best validation NDCG@10."""
        settings = loop.settings(self._config, self._num_items, self._seed)
        self._params = loop.load_best(self._params, settings, directory)

    def scores(self, histories: Ragged) -> jax.Array:
        """Inner products of all items with the state after the newest item.

        A history longer than `length` counts by its newest items. An empty history is scored from
        the start token, which has learned what users begin with.
        """
        return self._scores(self._params, histories)

    def recommend(self, histories: Ragged, k: int) -> TopK:
        """The unseen items with the highest scores."""
        return full_ranking.recommend(self.scores, histories, k, self._num_items)

    def target_ranks(self, histories: Ragged, target_U: np.ndarray) -> np.ndarray:
        """Ranks by score."""
        return full_ranking.ranks(self.scores, histories, target_U, self._num_items)

    def _scores(self, params: Params, histories: Ragged) -> jax.Array:
        parts = [jnp.zeros((0, self._num_items))]
        for users, part in full_ranking.chunks(histories, self._num_items):
            rows = inference_rows(part, self._num_items, self._config.length)
            parts.append(_last_scores(self._graph, params, rows)[: users.stop - users.start])
        return jnp.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _last_scores(graph: nnx.GraphDef, params: Params, rows: Rows) -> jax.Array:
    """Scores after the last column: [B, I]."""
    network = nnx.merge(graph, params)
    return network(rows, None)[:, -1] @ network.output_items().T
