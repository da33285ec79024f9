"""The evaluate stage: a row for every model, over the same users by the same protocol.

Shapes: U users, C candidates, K items of a slate.
"""

import numpy as np

from palr_jax.config import Config
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.data.split import Split
from palr_jax.decoding.generate import Mode
from palr_jax.evaluation.fusion import Weights, tune
from palr_jax.evaluation.fusion import slates as slates_of
from palr_jax.evaluation.metrics import SLATE, hit_rate, ndcg, slate_rank, summary
from palr_jax.evaluation.report import render
from palr_jax.evaluation.results import ControlRow, ResultRow, Results
from palr_jax.evaluation.significance import paired_bootstrap
from palr_jax.io.files import write_arrays, write_json, write_text
from palr_jax.io.progress import progress
from palr_jax.ranking.ranker import Ranker, load_ranker
from palr_jax.ranking.write import write_from_candidates, write_from_catalog
from palr_jax.retrieval.models import ROW_NAMES
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.controls import measure_controls
from palr_jax.stages.ranking_task import Task, evaluated_users, rank, rank_alone_too, read_task
from palr_jax.stages.report_parts import slate_examples, training_charts
from palr_jax.stages.retrieve import models_of
from palr_jax.stages.rows import Probabilities, Row, group_results


def evaluate(config: Config, run: RunDirectory) -> None:
    """Ranks for the evaluated users; writes slates, results and the report."""
    prepared = preparing.load(run.data)
    task = read_task(config, run, prepared.split, "test")
    retriever_rows = [
        Row(ROW_NAMES[name], run.read_candidates(name)["test_rank"][task.users])
        for name in models_of(config)
    ]
    popular = _with_popularity(config, run, prepared.split, task)
    ranker_rows, probabilities, controls = _ranker_rows(config, run, prepared, task)
    slates = {row.model: row.slate_UK for row in ranker_rows if row.slate_UK is not None}
    for model, slate_UK in slates.items():
        _check_slates(model, slate_UK, task, prepared.split.num_items)
    against = {ROW_NAMES[config.retriever.model]: retriever_rows[-1], popular.model: popular}
    pictured = [row for row in ranker_rows if row.model != "PALR_v1"][-2:] or ranker_rows
    results: Results = {
        "dataset": config.data.source,
        "protocol": _protocol(config, run, prepared),
        "rows": [_result(row, {}, config) for row in retriever_rows]
        + [_result(row, against, config) for row in (popular, *ranker_rows)],
        "groups": group_results(
            config, prepared.split, task, retriever_rows[-1], [popular, *pictured], probabilities
        ),
    }
    if controls:
        results["controls"] = controls
    write_arrays(run.slates, users=task.users, **slates)
    write_text(
        run.report,
        render(
            results,
            training_charts(config, run),
            run.instructions.read_text("utf-8"),
            slate_examples(config, run, prepared, task, slates),
        ),
    )
    write_json(run.results, results)


def _with_popularity(config: Config, run: RunDirectory, split: Split, task: Task) -> Row:
    """The retriever's candidates by its scores and their popularity, without a ranker."""
    validation = read_task(config, run, split, "validation")
    weights = tune(validation.scores(), validation.target_U, with_ranker=False)
    name = f"{ROW_NAMES[config.retriever.model]} + popularity"
    return _by_score(task, name, task.scores().fused(weights))


def _written(task: Task, model: str, slate_UK: np.ndarray) -> Row:
    """The row of slates that a ranker wrote."""
    return Row(model, slate_rank(slate_UK, task.target_U), slate_UK)


def _by_score(task: Task, model: str, score_UC: np.ndarray) -> Row:
    """The row of the best candidates by a score."""
    slate_UK = slates_of(task.candidates_UC, score_UC)
    return Row(model, slate_rank(slate_UK, task.target_U), slate_UK, score_UC)


def _ranker_rows(
    config: Config, run: RunDirectory, prepared: Prepared, task: Task
) -> tuple[list[Row], Probabilities | None, list[ControlRow]]:
    """The rows of the rankers; the probabilities and the controls of PALR_v2."""
    rows: list[Row] = []
    if "PALR_v1" in config.ranker.variants:
        ranker = load_ranker(config, run, "PALR_v1")
        with progress("evaluate PALR_v1", len(task.users), "users") as advance:
            slate_UK = write_from_catalog(
                ranker, task.histories, task.profiles, SLATE, advance, config.evaluate.width
            )
        rows.append(_written(task, "PALR_v1", slate_UK))
    if "PALR_v2" not in config.ranker.variants:
        return rows, None, []
    ranker = load_ranker(config, run, "PALR_v2")
    alone_UC, with_prior_UC = rank_alone_too(config, ranker, task, "evaluate PALR_v2")
    rows.append(_alone(config, ranker, task, alone_UC))
    probabilities = Probabilities("PALR_v2", alone_UC)
    if config.ranker.prior == "retriever":
        probabilities = Probabilities("PALR_v2 with prior", with_prior_UC)
        rows.append(_by_score(task, probabilities.model, with_prior_UC))
    weights = _tune_fusion(config, run, prepared.split, ranker)
    name = f"PALR_v2 + {ROW_NAMES[config.retriever.model]}"
    rows.append(_by_score(task, name, task.scores(probabilities.logp_UC).fused(weights)))
    if not config.evaluate.controls:
        return rows, probabilities, []
    return rows, probabilities, measure_controls(config, ranker, task, probabilities.logp_UC)


def _alone(config: Config, ranker: Ranker, task: Task, logp_UC: np.ndarray) -> Row:
    """The row of PALR_v2 alone, decoded as the config says."""
    match config.evaluate.decoding:
        case "score":
            return _by_score(task, "PALR_v2", logp_UC)
        case "generate" | "beam" | "sample" as decoding:
            mode: Mode = "greedy" if decoding == "generate" else decoding
            with progress("write PALR_v2", len(task.users), "users") as advance:
                slate_UK = write_from_candidates(
                    ranker, task.histories, task.profiles, task.candidates_UC, SLATE, advance, mode,
                    config.evaluate.temperature, config.seed,
                )  # fmt: skip
            return _written(task, "PALR_v2", slate_UK)


def _tune_fusion(config: Config, run: RunDirectory, split: Split, ranker: Ranker) -> Weights:
    """The fusion weights, tuned on validation items only."""
    if run.fusion.exists():  # an evaluation that was stopped after this point resumes here
        return run.read_weights()
    task = read_task(config, run, split, "validation")
    ranker_UC = rank(config, ranker, task, "tune the fusion")
    weights = tune(task.scores(ranker_UC), task.target_U)
    run.write_weights(weights, f"validation NDCG@10, {len(task.users):,} users")
    return weights


def _check_slates(model: str, slate_UK: np.ndarray, task: Task, num_items: int) -> None:
    """Every slate is distinct unseen items: a wrong one is a bug, never a result.

    A user with fewer than ten unseen items gets all of them, padded with -1.
    """
    for number, slate_K in enumerate(slate_UK):
        user, seen = task.users[number], np.unique(task.histories[number])
        items, wanted = slate_K[slate_K >= 0], min(SLATE, num_items - len(seen))
        is_full = len(items) == wanted and (slate_K[:wanted] >= 0).all()
        if not is_full or len(np.unique(items)) < wanted:
            raise AssertionError(
                f"{model}: the slate of user {user} is not {wanted} items: {slate_K}"
            )
        if np.isin(items, seen).any():
            raise AssertionError(f"{model}: the slate of user {user} holds seen items: {slate_K}")


def _result(row: Row, against: dict[str, Row], config: Config) -> ResultRow:
    """One row of results.json; `ci95` holds the differences to each of `against`."""
    result: ResultRow = {"model": row.model, "users": len(row.rank_U)}
    result |= {name: round(value, 6) for name, value in summary(row.rank_U).items()}
    if row.slate_UK is not None:
        result["valid slates"] = 1.0  # _check_slates has looked at every one
    result["ci95"] = {}
    for other_name, other in against.items():
        if other is row:
            continue
        differences = {}
        for name, metric in (("HR@10", hit_rate), ("NDCG@10", ndcg)):
            mine_U, theirs_U = metric(row.rank_U, SLATE), metric(other.rank_U, SLATE)
            bounds = paired_bootstrap(mine_U, theirs_U, config.seed, config.evaluate.bootstrap)
            differences[name] = [round(bound, 6) for bound in bounds]
        result["ci95"][other_name] = differences
    return result


def _protocol(config: Config, run: RunDirectory, prepared: Prepared) -> dict[str, str]:
    split, candidates = prepared.split, config.retriever.candidates
    retriever, users = ROW_NAMES[config.retriever.model], evaluated_users(config, split)
    protocol = {
        "data": f"{split.num_users:,} users, {split.num_items:,} items, "
        f"{prepared.num_interactions:,} interactions after {config.data.min_count}-core",
        "split": "leave-one-out by time (stable, ties in file order): the last item of a user "
        "tests, the one before validates",
        "users": "all"
        if len(users) == split.num_users
        else f"{len(users):,} drawn at random from all, the same in every row",
        "items ranked": "the whole catalog without the user's seen items",
        "rank": "1 + items scored strictly higher + half of the ties; outside a slate: a miss",
        "MRR": f"reciprocal rank within the slate of {SLATE}, else 0",
        "candidates": f"{retriever}'s top {candidates} unseen items, in its order, for PALR_v2",
        "PALR_v1": "writes its slate from the whole catalog, constrained by its trie",
        "PALR_v2": {
            "score": "ranks the candidates by P(candidate | prompt), one forward pass",
            "generate": "writes its slate from the candidates, the best token at every branch",
            "beam": "writes its slate from the candidates, the best item each time",
            "sample": "draws its slate from the candidates, token by token, at temperature "
            f"{config.evaluate.temperature}",
        }[config.evaluate.decoding],
        "tuned on": f"training items of {config.instruct.user_share:.0%} of the users",
        "compared with": retriever,
        f"{retriever} + popularity": f"{retriever}'s candidates by the log-softmax of its scores + "
        "a weight x log(1 + training interactions), the weight tuned on validation NDCG@10",
        "ci95": f"paired bootstrap over users of the difference to {retriever} and to {retriever} "
        f"+ popularity, {config.evaluate.bootstrap:,} resamples",
        "seed": str(config.seed),
    }
    if config.evaluate.shuffles:
        protocol["orders"] = (
            f"mean probability over {config.evaluate.shuffles} random orders of the candidates"
        )
    if config.profile.kind == "llm":
        protocol["profiles"] = run.profile_sources()
    if run.fusion.exists():
        protocol["fusion"] = f"{retriever} and {_in_words(run.read_weights())}"
    return protocol


def _in_words(weights: Weights) -> str:
    """The fused score, for readers of results.json."""
    ranker = "log P(candidate | prompt)"
    if weights.per_user:
        ranker = f"the {ranker} standardised by user"
    if weights.gate:
        ranker = f"max(0, 1 + {weights.gate} x standardised log popularity) x {ranker}"
    return (
        f"the ranker: log-softmax of scores + {weights.ranker} x {ranker} + {weights.popularity} x "
        "log(1 + training interactions), the weights tuned on validation NDCG@10"
    )
