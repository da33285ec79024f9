"""Retrievers of a run: trained in its directory, proposing candidates, compared with each other.

Shapes: U users, I items.
"""

from typing import get_args

import numpy as np

from palr_jax.config import Config
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.data.split import Part, Split
from palr_jax.evaluation.metrics import hit_rate, ndcg, summary
from palr_jax.evaluation.results import RetrieverRow
from palr_jax.io.files import read_lines, reading, write_arrays, write_json
from palr_jax.io.paths import delete
from palr_jax.io.progress import say
from palr_jax.parallel import processes
from palr_jax.retrieval import loop
from palr_jax.retrieval.config import Model, RetrieverConfig
from palr_jax.retrieval.models import MODELS, ROW_NAMES, fitted
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.item_vectors import retriever_features

_BASELINE: Model = "popularity"


def models_of(config: Config) -> list[Model]:
    """The retrievers of a run: the baseline, then the one that proposes the candidates."""
    return list(dict.fromkeys([_BASELINE, config.retriever.model]))


def retrieve(config: Config, run: RunDirectory) -> None:
    """Trains the retriever (and Popularity to compare with) and proposes candidates."""
    prepared = preparing.load(run.data)
    for model in models_of(config):
        propose(config, run, model, prepared)


def settings_of(config: Config, model: Model) -> RetrieverConfig:
    """The settings of any model: the run's own, or its preset over the defaults."""
    if model == config.retriever.model:
        return config.retriever
    values = {"candidates": config.retriever.candidates, **config.retriever_presets.get(model, {})}
    return RetrieverConfig(model=model, **values)


def propose(config: Config, run: RunDirectory, model: Model, prepared: Prepared) -> None:
    """Trains a model, or loads it if it is trained, and writes its candidates.

    A model that was trained with other settings is trained again from the start. With several
    processes, all must call this; the leader writes.

    Raises:
        UserError: as `fitted`.
        Terminated: SIGTERM was received in training, which is saved.
    """
    settings, directory, split = settings_of(config, model), run.retriever(model), prepared.split
    feature_IR = retriever_features(settings, run, prepared.catalog)
    inputs = loop.binding(settings, split, config.seed, feature_IR)

    def clear() -> None:
        if loop.has_other_inputs(directory, inputs):
            name = ROW_NAMES[model]
            say(f"{name}: was trained with other settings or data; training starts again")
            delete(directory)

    processes.led(clear)
    retriever = fitted(settings, split, config.seed, directory, feature_IR)
    arrays: dict[str, np.ndarray] = {}
    for part in get_args(Part):
        histories = split.histories(part)
        top = retriever.recommend(histories, settings.candidates)
        arrays[f"{part}_items"], arrays[f"{part}_scores"] = top.item_UK, top.score_UK
        arrays[f"{part}_rank"] = retriever.target_ranks(histories, split.targets(part))
    write_arrays(run.candidates(model), **arrays)
    rank_U = arrays["test_rank"]
    recall = _recall(arrays, split)
    say(
        f"{ROW_NAMES[model]}: test HR@10 {hit_rate(rank_U, 10).mean():.4f}, NDCG@10 "
        f"{ndcg(rank_U, 10).mean():.4f}, Recall@{settings.candidates} {recall:.4f}"
    )


def compare(config: Config, run: RunDirectory) -> list[RetrieverRow]:
    """Trains all retrievers, writes retrievers.json, and returns its rows."""
    prepared = preparing.load(run.data)
    rows = []
    for model in MODELS:
        propose(config, run, model, prepared)
        rows.append(_row(config, run, model, prepared.split))
        write_json(run.retrievers, {"seed": config.seed, "rows": rows})
    return rows


def _row(config: Config, run: RunDirectory, model: Model, split: Split) -> RetrieverRow:
    """Test metrics over all users, the share of the catalog in the slates, and what it took."""
    arrays = run.read_candidates(model)
    rank_U, candidates = arrays["test_rank"], config.retriever.candidates
    curve = run.retriever(model) / "curve.jsonl"
    epochs = read_lines(curve) if curve.exists() else []
    proposed = np.unique(arrays["test_items"][:, :10])
    with reading(curve):
        seconds = sum(line["seconds"] for line in epochs)
    return {
        "model": ROW_NAMES[model],
        "users": split.num_users,
        **{name: round(value, 6) for name, value in summary(rank_U).items()},
        f"Recall@{candidates}": round(_recall(arrays, split), 6),
        "coverage@10": round(int((proposed >= 0).sum()) / split.num_items, 6),
        "epochs": len(epochs),
        "minutes": round(seconds / 60, 1),
    }


def _recall(arrays: dict[str, np.ndarray], split: Split) -> float:
    """The share of users whose test item is on the list that was proposed for them.

    Ranks would not do: where many items are tied, a rank is the mean over places that the list has
    and places that it lacks.
    """
    found_UC = arrays["test_items"] == split.targets("test")[:, None]
    return float(found_UC.any(axis=1).mean())
