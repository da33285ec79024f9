"""What the report shows beside the results: training curves, and prompts with their slates."""

import numpy as np

from palr_jax.config import Config
from palr_jax.data.prepare import Prepared
from palr_jax.evaluation.metrics import SLATE
from palr_jax.evaluation.pictures import Chart, Curve
from palr_jax.evaluation.report import SlateExample
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.io.files import read_lines, reading
from palr_jax.retrieval.models import ROW_NAMES
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.ranking_task import Task

_EXAMPLES = 5


def training_charts(config: Config, run: RunDirectory) -> list[Chart]:
    """The curves of the rankers' losses, and of the retriever's validation if it is trained.

    Raises:
        UserError: a file of curves is missing or damaged.
    """
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


def slate_examples(
    config: Config,
    run: RunDirectory,
    prepared: Prepared,
    task: Task,
    slates: dict[str, np.ndarray],
) -> list[SlateExample]:
    """The first few of the evaluated users, not selected by their results."""
    split, titles = prepared.split, prepared.catalog.titles
    tokenizer, items = run.read_tokens()
    writer = PromptWriter(tokenizer, items, config.instruct)
    columns = {ROW_NAMES[config.retriever.model]: task.candidates_UC[:, :SLATE], **slates}
    examples = []
    for number, user in enumerate(task.users[:_EXAMPLES]):
        items_C = task.candidates_UC[number]
        prompt = writer.ranking_prompt(
            task.histories[number], task.profiles[number], items_C[items_C >= 0]
        )
        examples.append(
            SlateExample(
                user=str(split.user_ids[user]),
                prompt=tokenizer.decode(prompt.tokens_T),
                target=titles[split.test_U[user]],
                slates={
                    name: [titles[item] for item in slate_UK[number] if item >= 0]
                    for name, slate_UK in columns.items()
                },
            )
        )
    return examples
