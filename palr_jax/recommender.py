"""The inference API: `Recommender.load("runs/quickstart").recommend([["Heat (1995)"]])`.

Shapes: U users, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from palr_jax.config import Config
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.errors import UserError
from palr_jax.evaluation import fusion
from palr_jax.evaluation.metrics import SLATE
from palr_jax.files import read_json
from palr_jax.instruct.profiles import category_table, keyword_profiles
from palr_jax.ragged import Ragged
from palr_jax.ranker import Ranker, load_ranker
from palr_jax.retrieval.interface import Retriever
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.sharding import MeshConfig


@dataclass(frozen=True)
class Recommendation:
    """One place of a slate.

    Attributes:
        item_id: id in the source.
        title: text of the item.
        score: probability among the candidates by retriever and ranker together.
    """

    item_id: str
    title: str
    score: float


class Recommender:
    """Retriever, ranker and fusion weight of a finished run."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        retriever: Retriever,
        ranker: Ranker,
        weight: float,
    ) -> None:
        self._config = config
        self._prepared = prepared
        self._retriever = retriever
        self._ranker = ranker
        self._weight = weight
        self._categories = category_table(prepared.catalog)

    @classmethod
    def load(cls, run: str | Path, mesh: MeshConfig | None = None) -> "Recommender":
        """Restores a run from its directory.

        Args:
            run: the directory.
            mesh: the devices to rank on, whatever the run was made on; by default the first one.

        Raises:
            UserError: it is no run directory, it is not evaluated yet, or a checkpoint in it
                cannot be read.
        """
        directory = RunDirectory(Path(run))
        config = replace(directory.read_config(), mesh=mesh or MeshConfig())
        if "PALR_v2" not in config.ranker.variants:
            raise UserError(f"{run} has no PALR_v2: add it to ranker.variants and run again")
        if not directory.fusion.exists():
            raise UserError(f"{run} is not evaluated: run `palr run` with its config first")
        prepared = preparing.load(directory.data)
        retriever = MODELS[config.retriever.model](
            config.retriever, prepared.split.num_items, config.seed
        )
        retriever.load(directory.retriever(config.retriever.model))
        ranker = load_ranker(config, directory, "PALR_v2")
        weight = float(read_json(directory.fusion)["weight"])
        return cls(config, prepared, retriever, ranker, weight)

    def history_of(self, user_id: str) -> list[str]:
        """The titles of all items of a user of the data set, oldest first.

        Raises:
            UserError: no such user.
        """
        split = self._prepared.split
        found = np.flatnonzero(split.user_ids == user_id)
        if not len(found):
            some = ", ".join(map(str, split.user_ids[:3]))
            raise UserError(f"user {user_id!r} is not in the data; there are {some}, …")
        user = int(found[0])
        items = [*split.train[user], split.validation_U[user], split.test_U[user]]
        return [self._prepared.catalog.titles[item] for item in items]

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = SLATE
    ) -> list[list[Recommendation]]:
        """The k best unseen items for each history.

        Args:
            histories: titles per user, oldest first; they need not be users of the data set.
            k: items of a slate, at most `retriever.candidates`.

        Raises:
            UserError: a title is not in the catalog, or k is too large.
        """
        if not 1 <= k <= self._config.retriever.candidates:
            raise UserError(
                f"{k} items cannot be recommended: k goes from 1 to the number of candidates, "
                f"{self._config.retriever.candidates}"
            )
        catalog = self._prepared.catalog
        known = Ragged.from_rows([[catalog.index_of(title) for title in row] for row in histories])
        top = self._retriever.recommend(known, self._config.retriever.candidates)
        candidates_UC, retriever_UC = np.asarray(top.item_UK), np.asarray(top.score_UK)
        profiles = keyword_profiles(
            known, self._categories, self._config.profile, self._config.instruct
        )
        ranker_UC = self._ranker.score(known, profiles, candidates_UC, "rank")
        fused_UC = fusion.fuse(retriever_UC, ranker_UC, self._weight)
        probability_UC = np.exp(fused_UC - np.logaddexp.reduce(fused_UC, axis=1, keepdims=True))
        order_UC = np.argsort(-fused_UC, axis=1, kind="stable")
        return [
            [
                Recommendation(
                    item_id=str(catalog.item_ids[items_C[place]]),
                    title=catalog.titles[items_C[place]],
                    score=float(probability_C[place]),
                )
                for place in order_C[:k]
            ]
            for items_C, probability_C, order_C in zip(
                candidates_UC, probability_UC, order_UC, strict=True
            )
        ]
