"""Rows of the results table, and what they give by groups of users."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.config import Config
from palr_jax.data.split import Split
from palr_jax.evaluation.fusion import target_rank
from palr_jax.evaluation.groups import (
    HISTORY_ENDS,
    POPULARITY_ENDS,
    lifts,
    moves,
    position,
    ranges,
    rank_ranges,
)
from palr_jax.evaluation.reliability import reliability
from palr_jax.json_types import JsonObject
from palr_jax.stages.ranking_task import Task


@dataclass(frozen=True)
class Row:
    """A model's result.

    Attributes:
        model: its name in tables.
        rank_U: the rank of every user's test item (infinite outside a slate).
        slate_UK: the slates of a ranker; None for a retriever, which ranks the whole catalog.
        score_UC: what orders the candidates; None where the slate is written item by item.
    """

    model: str
    rank_U: np.ndarray
    slate_UK: np.ndarray | None = None
    score_UC: np.ndarray | None = None


@dataclass(frozen=True)
class Probabilities:
    """P(candidate | prompt) of a ranker, as log P [U, C]."""

    model: str
    logp_UC: np.ndarray


def group_results(
    config: Config,
    split: Split,
    task: Task,
    retriever: Row,
    rows: Sequence[Row],
    probabilities: Probabilities | None,
) -> JsonObject:
    """The `groups` of results.json (docs/results.md).

    Args:
        config: of the run.
        split: of the data.
        task: what was ranked.
        retriever: the row that the others are compared with.
        rows: the rows compared with it.
        probabilities: of PALR_v2, if it was evaluated.
    """
    width = task.candidates_UC.shape[1]
    popularity_I = np.bincount(split.train.values_N, minlength=split.num_items)
    before_U = position(task.candidates_UC, task.target_U)
    by = {
        "history": (task.histories.lengths_R, ranges(0, HISTORY_ENDS)),
        "popularity": (popularity_I[task.target_U], ranges(0, POPULARITY_ENDS)),
        "rank": (before_U, rank_ranges(width)),
    }
    ranks = {row.model: row.rank_U for row in rows}
    baseline = (retriever.model, retriever.rank_U)
    found = int((before_U <= width).sum())
    groups: JsonObject = {
        "metric": "NDCG@10",
        "baseline": retriever.model,
        "models": list(ranks),
        "lift": {
            name: lifts(values_U, parts, baseline, ranks, config.seed, config.evaluate.bootstrap)
            for name, (values_U, parts) in by.items()
        },
    }
    if probabilities is None:
        return groups
    scores = {row.model: row.score_UC for row in rows if row.score_UC is not None}
    groups["moves"] = {
        "candidates": width,
        "found": found,
        "ranks": [part.to_dict() for part in rank_ranges(width)[:-1]],
        "models": {
            model: moves(before_U, target_rank(task.candidates_UC, score_UC, task.target_U), width)
            for model, score_UC in scores.items()
        },
    }
    bins = reliability(probabilities.logp_UC, task.candidates_UC, task.target_U)
    groups["reliability"] = {"model": probabilities.model, "found": found, "bins": bins}
    return groups
