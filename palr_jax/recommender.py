"""The inference API: `Recommender.load("runs/quickstart").recommend([["Heat (1995)"]])`.

Shapes: U users, C candidates, K items of a slate, H history items in a prompt.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from palr_jax.arguments import flag, lists_of_texts, text_of, texts_of, whole_number
from palr_jax.config import Config
from palr_jax.data.catalog import By, Catalog
from palr_jax.data.prepare import Prepared
from palr_jax.errors import UserError
from palr_jax.evaluation.fusion import Scores, Weights, log_popularity, popularity_of
from palr_jax.evaluation.metrics import SLATE
from palr_jax.finished_run import load_run
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.instruct.profiles import CategoryTable, category_table, keyword_profiles
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.io.paths import path_of
from palr_jax.io.progress import Advance, progress
from palr_jax.item_lists import allowed_candidates, items_named, names_of, united
from palr_jax.padding import to_power_of_two
from palr_jax.parallel.config import MeshConfig
from palr_jax.ragged import Ragged
from palr_jax.ranking.explain import Explanation, explanations
from palr_jax.ranking.ranker import Ranker, log_prior
from palr_jax.retrieval.interface import Retriever


@dataclass(frozen=True)
class Recommendation:
    """One item of a slate.

    Attributes:
        item_id: id in the source.
        title: text of the item.
        score: probability among the candidates, by retriever and ranker together; by the ranker
            alone if the candidates were given.
        explanation: why, if it was asked for.
    """

    item_id: str
    title: str
    score: float
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Recommender:
    """Retriever, ranker and fusion weight of a finished run.

    Attributes:
        config: of the run.
        prepared: its data.
        catalog: its items, and others that were added since.
        retriever: proposes candidates among the items of the run.
        ranker: knows the tokens of all items of `catalog`.
        weights: of ranker and popularity beside the retriever.
        step: of the ranker's training.
    """

    config: Config
    prepared: Prepared
    catalog: Catalog
    retriever: Retriever
    ranker: Ranker
    weights: Weights
    step: int

    @classmethod
    def load(cls, path: str | Path, mesh: MeshConfig | None = None) -> "Recommender":
        """Restores a run from its directory.

        Args:
            path: a run directory, or one of the checkpoints in it
                (`runs/NAME/ranker/PALR_v2/STEP`).
            mesh: the devices of this process to rank on, whatever the run was made on; by default
                its first one.

        Raises:
            UserError: it is no run directory, it is not evaluated yet, or a checkpoint in it
                cannot be read.
        """
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"path: the path of a run is expected, not {path!r}")
        run = load_run(path_of(path), mesh or MeshConfig())
        return cls(
            run.config, run.prepared, run.prepared.catalog, run.retriever, run.ranker, run.weights,
            run.step,
        )  # fmt: skip

    def with_items(
        self, titles: Sequence[str], categories: Sequence[Sequence[str]] | None = None
    ) -> "Recommender":
        """The same with more items, which need no training: the ranker reads their titles.

        They can stand in histories and in lists of candidates. The retriever neither proposes
        them nor learns anything from them in a history.

        Args:
            titles: of the new items, whose ids are `new-1`, `new-2`, ….
            categories: of each, for profiles; by default none.

        Raises:
            UserError: a title is in the catalog already, or empty, or too long, or there are not
                as many lists of categories as titles.
        """
        titles = texts_of(titles, "titles")
        if categories is not None:
            categories = lists_of_texts(categories, "categories")
        fresh = len(self.catalog) - self.prepared.split.num_items
        ids = [f"new-{fresh + number}" for number in range(1, len(titles) + 1)]
        longer = self.catalog.with_items(ids, titles, categories)
        tokenizer = self.ranker.writer.tokenizer
        items = tokenize_items(longer, tokenizer, self.config.instruct, self.ranker.items).tokens
        writer = PromptWriter(tokenizer, items, self.config.instruct)
        return replace(
            self, catalog=longer, ranker=replace(self.ranker, writer=writer, items=items)
        )

    def history_of(self, user_id: str, by: By = "title") -> list[str]:
        """The titles (or ids) of all items of a user of the data set, oldest first.

        Raises:
            UserError: no such user, or items are named by nothing else.
        """
        split, names = self.prepared.split, names_of(self.catalog, by)
        found = np.flatnonzero(split.user_ids == text_of(user_id, "user_id"))
        if not len(found):
            some = ", ".join(map(str, split.user_ids[:3]))
            raise UserError(f"user {user_id!r} is not in the data; there are {some}, …")
        return [str(names[item]) for item in split.histories("all", found)[0]]

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = SLATE,
        candidates: Sequence[Sequence[str]] | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
        explain: bool = False,
        by: By = "title",
    ) -> list[list[Recommendation]]:
        """The k best unseen items for each history.

        Args:
            histories: titles per user, oldest first; they need not be users of the data set.
            k: items of a slate; a user with fewer candidates gets all of them, even none.
            candidates: titles per user from any retriever, best first; by default that of the run
                proposes `retriever.candidates` of them.
            exclude: titles per user that are not to be recommended, beside those of the history.
            explain: say why, which costs about H more prompts per user.
            by: what histories, candidates and excluded items are named by; "id" for their ids in
                the source instead of titles.

        Raises:
            UserError: an item is not in the catalog, a user's own candidates are all banned or one
                of them appears twice, the lists are not as many as the histories, k is not a
                number of items or more than the run's retriever proposes, or an argument is of
                another kind.
        """
        known = items_named(self.catalog, histories, "histories", by)
        k, explain = whole_number(k, "k", least=1), flag(explain, "explain")
        banned = known
        if exclude is not None:
            banned = united(known, items_named(self.catalog, exclude, "exclude", by, known))
        if not len(known):
            return []
        if candidates is None:
            candidates_UC, retriever_UC = self.propose(known, banned, k)
        else:
            own = items_named(self.catalog, candidates, "candidates", by, known)
            candidates_UC = allowed_candidates(self.catalog, own, banned)
            retriever_UC = None
        with progress("rank", len(known), "users") as advance:
            fused_UC = self.fused(known, candidates_UC, retriever_UC, advance)
        slates = self._slates(candidates_UC, fused_UC, k)
        if not explain:
            return slates
        return self._explained(slates, known, candidates_UC, retriever_UC)

    def _explained(
        self,
        slates: list[list[Recommendation]],
        known: Ragged,
        candidates_UC: np.ndarray,
        retriever_UC: np.ndarray | None,
    ) -> list[list[Recommendation]]:
        """The same slates with an explanation of every item."""
        users = [user for user, slate in enumerate(slates) if slate]
        some, items_UC = known.take(users), candidates_UC[users]
        scores_UC = None if retriever_UC is None else retriever_UC[users]
        why = explanations(
            self.ranker,
            self.catalog.titles,
            some,
            self.profiles(some),
            items_UC,
            scores_UC,
        )
        for user, mine in zip(users, why, strict=True):
            slates[user] = [replace(one, explanation=mine[one.title]) for one in slates[user]]
        return slates

    def rank(
        self, history: Sequence[str], candidates: Sequence[str], by: By = "title"
    ) -> list[tuple[str, float]]:
        """The candidates, best first, with log P(candidate | history) by the ranker alone.

        The probabilities sum to 1.

        Args:
            history: titles, oldest first.
            candidates: titles from any retriever; here also such that the history holds.
            by: what items are named by, here and in the result.

        Raises:
            UserError: an item is not in the catalog, there are no candidates, or one is there
                twice.
        """
        known = items_named(self.catalog, [texts_of(history, "history")], "history", by)
        own = items_named(self.catalog, [texts_of(candidates, "candidates")], "candidates", by)
        candidates_UC = allowed_candidates(self.catalog, own, Ragged.from_rows([[]]))
        with progress("rank", 1, "users") as advance:
            logp_C = self._score(known, candidates_UC, advance)[0, : len(own[0])]
        order_C = np.argsort(-logp_C, kind="stable")
        names, items_C = names_of(self.catalog, by), candidates_UC[0]
        return [(str(names[items_C[slot]]), float(logp_C[slot])) for slot in order_C]

    def profiles(self, known: Ragged) -> list[str]:
        """The profile sentence of each history, from the categories of its items."""
        return keyword_profiles(known, self._categories, self.config.profile, self.config.instruct)

    @cached_property
    def _popularity_I(self) -> np.ndarray:
        split = self.prepared.split
        return log_popularity(split.train.values_N, split.num_items)

    @cached_property
    def _categories(self) -> CategoryTable:
        return category_table(self.catalog)

    def propose(
        self, known: Ragged, banned: Ragged, k: int, room: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The retriever's candidates outside `banned`, [U, C], and their scores, [U, C].

        Behind the last candidate of a user, items are -1 and scores -inf.

        Args:
            known: histories.
            banned: the same, and what else is not to be proposed.
            k: how many of the candidates are wanted.
            room: banned items outside the history that there is room for, at least, so that calls
                with fewer share a program.

        Raises:
            UserError: k is more than there are candidates.
        """
        self.check_k(k)
        count, items = self.config.retriever.candidates, self.prepared.split.num_items
        of_run = Ragged.from_rows(row[row < items] for row in known)
        extra = max(room, int((banned.lengths_R - known.lengths_R).max(initial=0)))
        # Every number of items asked for is a program of its own: few numbers.
        top = self.retriever.recommend(
            of_run, min(count + to_power_of_two(extra, 8), max(count, items))
        )
        item_UK, score_UK = np.asarray(top.item_UK), np.asarray(top.score_UK)
        if not extra:
            return item_UK, score_UK
        is_free_UK = np.array([~np.isin(item_K, banned[row]) for row, item_K in enumerate(item_UK)])
        is_free_UK &= item_UK >= 0
        order_UC = np.argsort(~is_free_UK, axis=1, kind="stable")[:, :count]
        is_free_UC, items_UC, scores_UC = (
            np.take_along_axis(array, order_UC, axis=1) for array in (is_free_UK, item_UK, score_UK)
        )
        return np.where(is_free_UC, items_UC, -1), np.where(is_free_UC, scores_UC, -np.inf)

    def check_k(self, k: int) -> None:
        """Checks that the retriever proposes so many items.

        Raises:
            UserError: it does not.
        """
        count = self.config.retriever.candidates
        if not 1 <= k <= count:
            raise UserError(
                f"{k} items cannot be recommended: k goes from 1 to the number of candidates, "
                f"{count}"
            )

    def fused(
        self,
        known: Ragged,
        candidates_UC: np.ndarray,
        retriever_UC: np.ndarray | None,
        advance: Advance,
    ) -> np.ndarray:
        """Log-probability of each candidate by retriever and ranker, [U, C]; -inf where is none.

        Args:
            known: histories.
            candidates_UC: item indices, -1 where there is none.
            retriever_UC: scores of the candidates; if None, the ranker's score is used alone.
            advance: reports finished users.
        """
        whole_UC = np.full(candidates_UC.shape, -np.inf, np.float32)
        users = np.flatnonzero((candidates_UC >= 0).any(axis=1))
        advance(len(candidates_UC) - len(users))
        if not len(users):
            return whole_UC
        some, items_UC = known.take(users), candidates_UC[users]
        scores_UC = None if retriever_UC is None else retriever_UC[users]
        ranker_UC = self._score(some, items_UC, advance, scores_UC)
        whole_UC[users] = self.joined(items_UC, scores_UC, ranker_UC)
        return whole_UC

    def joined(
        self, items_UC: np.ndarray, retriever_UC: np.ndarray | None, ranker_UC: np.ndarray
    ) -> np.ndarray:
        """Log-probability of each candidate by retriever and ranker, from the scores of both.

        Args:
            items_UC: item indices, padded with -1; every user has a candidate.
            retriever_UC: scores of the candidates; if None, the ranker's are returned unchanged.
            ranker_UC: log-probabilities.
        """
        if retriever_UC is None:
            return ranker_UC
        popularity_UC = popularity_of(items_UC, self._popularity_I)
        fused_UC = Scores(items_UC, retriever_UC, ranker_UC, popularity_UC).fused(self.weights)
        return fused_UC - np.logaddexp.reduce(fused_UC, axis=1, keepdims=True)

    def _score(
        self,
        known: Ragged,
        candidates_UC: np.ndarray,
        advance: Advance,
        retriever_UC: np.ndarray | None = None,
    ) -> np.ndarray:
        evaluate, profiles = self.config.evaluate, self.profiles(known)
        prior_UPC = log_prior(candidates_UC, retriever_UC)[:, None]
        return self.ranker.score_under(
            known,
            profiles,
            candidates_UC,
            prior_UPC,
            advance,
            evaluate.shuffles,
            self.config.seed,
        )[:, 0]

    def _slates(
        self, candidates_UC: np.ndarray, fused_UC: np.ndarray, k: int
    ) -> list[list[Recommendation]]:
        order_UK = np.argsort(-fused_UC, axis=1, kind="stable")[:, :k]
        return [
            [
                Recommendation(
                    item_id=str(self.catalog.item_ids[items_C[slot]]),
                    title=self.catalog.titles[items_C[slot]],
                    score=float(np.exp(logp_C[slot])),
                )
                for slot in order_K
                if items_C[slot] >= 0
            ]
            for items_C, logp_C, order_K in zip(candidates_UC, fused_UC, order_UK, strict=True)
        ]
