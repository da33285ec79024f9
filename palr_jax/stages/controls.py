"""Controls: how PALR_v2 ranks when a part of what it reads is disturbed.

They expose a ranker that copies the order of its candidates, or ignores titles or histories.

Shapes: U users, C candidates.
"""

from dataclasses import replace

import numpy as np
from flax import nnx

from palr_jax.config import Config
from palr_jax.decoding.candidate_head import RankingLlama, head_of
from palr_jax.evaluation.fusion import slates
from palr_jax.evaluation.metrics import SLATE, hit_rate, ndcg, slate_rank
from palr_jax.evaluation.results import ControlRow
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import Ranker
from palr_jax.stages.ranking_task import Task, rank


def measure_controls(
    config: Config, ranker: Ranker, task: Task, ranker_UC: np.ndarray
) -> list[ControlRow]:
    """A row for every control, with its HR@10 and NDCG@10.

    Args:
        config: of the run.
        ranker: PALR_v2.
        task: what is to be ranked.
        ranker_UC: its log-probabilities on the undisturbed task.
    """
    rng = np.random.default_rng([config.seed, 1])
    random_UC = rng.random(task.candidates_UC.shape)
    rows = [
        _row("PALR_v2 as it is", task, ranker_UC),
        _row("random order", task, np.where(task.candidates_UC >= 0, random_UC, -np.inf)),
        _row("prior alone", task, task.retriever_UC),
    ]
    if config.instruct.prompt == "candidates":
        shuffled = rng.permuted(np.indices(task.candidates_UC.shape)[1], axis=1)
        reverse = np.indices(task.candidates_UC.shape)[1][:, ::-1]
        for name, order_UC in (("candidates reversed", reverse), ("candidates shuffled", shuffled)):
            rows.append(_row(name, *_ranked(config, ranker, _in_order(task, order_UC), name)))
    mixed = replace(
        task,
        histories=Ragged.from_rows(
            rng.permutation(task.histories[user]) for user in range(len(task.users))
        ),
    )
    rows.append(_row("histories shuffled", *_ranked(config, ranker, mixed, "histories shuffled")))
    if (head := head_of(ranker.model)) is not None:
        name = "LLaMA silent"
        silent = replace(ranker, model=RankingLlama(ranker.model, head.without_text()))
        rows.append(_row(name, *_ranked(config, silent, task, name)))
    name = "titles exchanged"
    exchanged = _with_titles_exchanged(config, ranker, rng)
    rows.append(_row(name, *_ranked(config, exchanged, task, name)))
    return rows


def _ranked(config: Config, ranker: Ranker, task: Task, name: str) -> tuple[Task, np.ndarray]:
    return task, rank(config, ranker, task, f"control: {name}")


def _row(name: str, task: Task, score_UC: np.ndarray) -> ControlRow:
    rank_U = slate_rank(slates(task.candidates_UC, score_UC), task.target_U)
    return {
        "control": name,
        "users": len(task.users),
        "HR@10": round(float(hit_rate(rank_U, SLATE).mean()), 6),
        "NDCG@10": round(float(ndcg(rank_U, SLATE).mean()), 6),
    }


def _in_order(task: Task, order_UC: np.ndarray) -> Task:
    """The same task with the candidates of every user in another order."""
    return replace(
        task,
        candidates_UC=np.take_along_axis(task.candidates_UC, order_UC, axis=1),
        retriever_UC=np.take_along_axis(task.retriever_UC, order_UC, axis=1),
        popularity_UC=np.take_along_axis(task.popularity_UC, order_UC, axis=1),
    )


def _with_titles_exchanged(config: Config, ranker: Ranker, rng: np.random.Generator) -> Ranker:
    """The same ranker in a world where every item bears the title of another.

    Item vectors that were made of titles move with them; those of the retriever stay.
    """
    order_I = rng.permutation(len(ranker.items))
    items = ranker.items.take(order_I)
    writer = PromptWriter(ranker.writer.tokenizer, items, ranker.writer.config)
    model, head = ranker.model, head_of(ranker.model)
    if head is not None:
        exchanged = nnx.clone(head)
        for kind, block in zip(config.ranker.item_embeddings, exchanged.blocks, strict=True):
            if kind != "retriever":
                block.vectors_IR[...] = block.vectors_IR[...][order_I]
        model = RankingLlama(ranker.model, exchanged)
    return replace(ranker, model=model, writer=writer, items=items)
