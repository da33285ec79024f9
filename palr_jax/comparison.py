"""The evaluate stage: a row for every model, over the same users by the same protocol.

Shapes: U users, C candidates, K items of a slate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from palr_jax.config import Config
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.data.split import Part
from palr_jax.decoding.generate import Mode
from palr_jax.evaluation import fusion
from palr_jax.evaluation.metrics import SLATE, hit_rate, ndcg, slate_rank, summary
from palr_jax.evaluation.report import Chart, Curve, SlateExample, render
from palr_jax.evaluation.significance import paired_bootstrap
from palr_jax.files import read_lines, reading, write_arrays, write_json, write_text
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.ranker import Ranker, load_ranker
from palr_jax.retrieval.config import Model
from palr_jax.retrieval.models import ROW_NAMES
from palr_jax.run_directory import RunDirectory

_BASELINE: Model = "popularity"
_EXAMPLES = 5


@dataclass(frozen=True)
class Row:
    """A model's result.

    Attributes:
        model: its name in tables.
        rank_U: the rank of every user's test item (infinite outside a slate).
        slate_UK: the slates of a ranker; None for a retriever, which ranks the whole catalog.
    """

    model: str
    rank_U: np.ndarray
    slate_UK: np.ndarray | None


def retrievers(config: Config) -> list[Model]:
    """The retrievers of a run: the baseline, then the one that proposes the candidates."""
    return list(dict.fromkeys([_BASELINE, config.retriever.model]))


def evaluate(config: Config, run: RunDirectory) -> None:
    """Ranks for all users; writes slates, results and the report."""
    prepared = preparing.load(run.data)
    baseline_rows = [
        Row(ROW_NAMES[name], run.read_candidates(name)["test_rank"], None)
        for name in retrievers(config)
    ]
    ranker_rows = _ranker_rows(config, run, prepared)
    slates = {row.model: row.slate_UK for row in ranker_rows if row.slate_UK is not None}
    for model, slate_UK in slates.items():
        _check_slates(model, slate_UK, prepared)
    results = {
        "dataset": config.data.source,
        "protocol": _protocol(config, run, prepared),
        "rows": [_result(row, None, config) for row in baseline_rows]
        + [_result(row, baseline_rows[-1], config) for row in ranker_rows],
    }
    write_arrays(run.slates, **slates)
    write_text(
        run.report,
        render(
            results,
            _charts(config, run),
            run.instructions.read_text("utf-8"),
            _examples(config, run, prepared, slates),
        ),
    )
    write_json(run.results, results)


def _ranker_rows(config: Config, run: RunDirectory, prepared: Prepared) -> list[Row]:
    split, profiles = prepared.split, run.read_profiles()
    histories, target_U = split.histories("test"), split.targets("test")
    rows = []
    if "PALR_v1" in config.ranker.variants:
        ranker = load_ranker(config, run, "PALR_v1")
        slate_UK = ranker.write_from_catalog(
            histories, profiles, SLATE, "evaluate PALR_v1", config.evaluate.width
        )
        rows.append(Row("PALR_v1", slate_rank(slate_UK, target_U), slate_UK))
    if "PALR_v2" in config.ranker.variants:
        ranker = load_ranker(config, run, "PALR_v2")
        found = run.read_candidates(config.retriever.model)
        candidates_UC, retriever_UC = found["test_items"], found["test_scores"]
        orders, seed = config.evaluate.shuffles, config.seed
        ranker_UC = ranker.score_in_orders(
            histories, profiles, candidates_UC, "evaluate PALR_v2", orders, seed
        )
        match config.evaluate.decoding:
            case "score":
                slate_UK = fusion.slates(candidates_UC, ranker_UC)
            case "generate" | "beam" | "sample" as decoding:
                mode: Mode = "greedy" if decoding == "generate" else decoding
                slate_UK = ranker.write(
                    histories, profiles, candidates_UC, SLATE, "write PALR_v2", mode,
                    config.evaluate.temperature, seed,
                )  # fmt: skip
        rows.append(Row("PALR_v2", slate_rank(slate_UK, target_U), slate_UK))
        weight = _tune_fusion(config, run, prepared, ranker)
        slate_UK = fusion.slates(candidates_UC, fusion.fuse(retriever_UC, ranker_UC, weight))
        name = f"PALR_v2 + {ROW_NAMES[config.retriever.model]}"
        rows.append(Row(name, slate_rank(slate_UK, target_U), slate_UK))
    return rows


def _tune_fusion(config: Config, run: RunDirectory, prepared: Prepared, ranker: Ranker) -> float:
    """The weight of the ranker beside the retriever, from validation items alone."""
    part: Part = "validation"
    if run.fusion.exists():  # an evaluation that was stopped after this goes on from here
        return run.read_weight()
    found = run.read_candidates(config.retriever.model)
    candidates_UC, retriever_UC = found[f"{part}_items"], found[f"{part}_scores"]
    histories, profiles = prepared.split.histories(part), run.read_profiles()
    orders, seed = config.evaluate.shuffles, config.seed
    ranker_UC = ranker.score_in_orders(
        histories, profiles, candidates_UC, "tune the fusion", orders, seed
    )
    target_U = prepared.split.targets(part)
    weight = fusion.tune_weight(candidates_UC, retriever_UC, ranker_UC, target_U)
    write_json(run.fusion, {"weight": weight, "tuned on": f"{part} NDCG@10, all users"})
    return weight


def _check_slates(model: str, slate_UK: np.ndarray, prepared: Prepared) -> None:
    """Every slate is distinct unseen items: a wrong one is a bug, never a result.

    Of a user with fewer than ten unseen items it is all of them; behind the last it holds -1.
    """
    histories = prepared.split.histories("test")
    for user, slate_K in enumerate(slate_UK):
        seen, items = np.unique(histories[user]), slate_K[slate_K >= 0]
        wanted = min(SLATE, prepared.split.num_items - len(seen))
        is_full = len(items) == wanted and (slate_K[:wanted] >= 0).all()
        if not is_full or len(np.unique(items)) < wanted:
            raise AssertionError(
                f"{model}: the slate of user {user} is not {wanted} items: {slate_K}"
            )
        if np.isin(items, seen).any():
            raise AssertionError(f"{model}: the slate of user {user} holds seen items: {slate_K}")


def _result(row: Row, against: Row | None, config: Config) -> dict[str, Any]:
    result: dict[str, Any] = {"model": row.model, "users": len(row.rank_U)}
    result |= {name: round(value, 6) for name, value in summary(row.rank_U).items()}
    if row.slate_UK is not None:
        result["valid slates"] = 1.0  # _check_slates has looked at every one
    result["ci95"] = {}
    if against:
        for name, metric in (("HR@10", hit_rate), ("NDCG@10", ndcg)):
            mine_U, theirs_U = metric(row.rank_U, SLATE), metric(against.rank_U, SLATE)
            bounds = paired_bootstrap(mine_U, theirs_U, config.seed, config.evaluate.bootstrap)
            result["ci95"][name] = [round(bound, 6) for bound in bounds]
    return result


def _protocol(config: Config, run: RunDirectory, prepared: Prepared) -> dict[str, str]:
    split, candidates = prepared.split, config.retriever.candidates
    retriever = ROW_NAMES[config.retriever.model]
    protocol = {
        "data": f"{split.num_users:,} users, {split.num_items:,} items, "
        f"{prepared.num_interactions:,} interactions after {config.data.min_count}-core",
        "split": "leave-one-out by time (stable, ties in file order): the last item of a user "
        "tests, the one before validates",
        "users": "all",
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
        "ci95": f"paired bootstrap over users of the difference to {retriever}, "
        f"{config.evaluate.bootstrap:,} resamples",
        "seed": str(config.seed),
    }
    if config.evaluate.shuffles:
        protocol["orders"] = (
            f"mean probability over {config.evaluate.shuffles} random orders of the candidates"
        )
    if config.profile.kind == "llm":
        protocol["profiles"] = run.profile_sources()
    if run.fusion.exists():
        weight = run.read_weight()
        protocol["fusion"] = (
            f"log-softmax of {retriever}'s scores + {weight} x log P(candidate | prompt), "
            "the weight tuned on validation NDCG@10"
        )
    return protocol


def _charts(config: Config, run: RunDirectory) -> list[Chart]:
    lines, losses = read_lines(run.metrics), []
    with reading(run.metrics, "run `palr finetune`"):
        for variant in config.ranker.variants:
            mine = [line for line in lines if line["model"] == variant]
            losses.append(Curve(variant, [x["step"] for x in mine], [x["loss"] for x in mine]))
    charts = [Chart("Ranker: loss of label tokens", "step", "nats a token", losses)]
    history = run.retriever(config.retriever.model) / "curve.jsonl"
    if history.exists():  # a retriever without training, such as Popularity, has none
        epochs = read_lines(history)
        with reading(history, "run `palr retrieve`"):
            quality = [line["validation NDCG@10"] for line in epochs]
            curve = Curve(ROW_NAMES[config.retriever.model], [x["epoch"] for x in epochs], quality)
        charts.append(Chart("Retriever: validation NDCG@10", "epoch", "NDCG@10", [curve]))
    return charts


def _examples(
    config: Config, run: RunDirectory, prepared: Prepared, slates: dict[str, np.ndarray]
) -> list[SlateExample]:
    """The first users of the data set, whoever they are."""
    split, titles = prepared.split, prepared.catalog.titles
    found = run.read_candidates(config.retriever.model)
    tokenizer, items = run.read_tokens()
    writer = PromptWriter(tokenizer, items, config.instruct)
    histories, profiles = split.histories("test"), run.read_profiles()
    columns = {ROW_NAMES[config.retriever.model]: found["test_items"][:, :SLATE], **slates}
    examples = []
    for user in range(min(_EXAMPLES, split.num_users)):
        items_C = found["test_items"][user]
        prompt_T = writer.prompt(histories[user], profiles[user], items_C[items_C >= 0])
        examples.append(
            SlateExample(
                user=str(split.user_ids[user]),
                prompt=tokenizer.decode(prompt_T),
                target=titles[split.test_U[user]],
                slates={
                    name: [titles[item] for item in slate_UK[user] if item >= 0]
                    for name, slate_UK in columns.items()
                },
            )
        )
    return examples
