"""The stages of a run: prepare → retrieve → profile → finetune → evaluate.

Each reads and writes the run directory, and is skipped if it is done and none of its inputs
has changed.
"""

from pathlib import Path
from typing import get_args

import jax

from palr_jax.config import Config, Variant, to_dict
from palr_jax.data import prepare as preparing
from palr_jax.evaluation.results import RetrieverRow
from palr_jax.io.paths import path_of
from palr_jax.json_types import JsonObject
from palr_jax.llm.quantize import qwix
from palr_jax.parallel import processes
from palr_jax.parallel.sharding import make_mesh
from palr_jax.retrieval.models import check_processes
from palr_jax.run_directory import RunDirectory
from palr_jax.stage_log import Stage
from palr_jax.stages.evaluate import evaluate
from palr_jax.stages.finetune import finetune
from palr_jax.stages.instruction_data import (
    example_texts,
    load_instructions,
    needs_proposals,
    statistics,
    tokenize,
)
from palr_jax.stages.profile import profile
from palr_jax.stages.retrieve import compare, models_of, retrieve

STAGES = ("prepare", "retrieve", "profile", "finetune", "evaluate")

# What each stage is made from: keys of the config. A change in one of them makes the stage run
# again; its seed is part of what a stage is made from where it draws random numbers.
_MADE_FROM: dict[str, tuple[str, ...]] = {
    "prepare": ("data",),
    "retrieve": ("data", "seed", "retriever"),
    "profile": ("data", "profile", "instruct"),
    "finetune": ("data", "seed", "profile", "instruct", "ranker", "finetune"),
    "evaluate": (
        "data", "seed", "retriever", "profile", "instruct", "ranker", "finetune", "evaluate",
    ),
}  # fmt: skip
# Keys that were added after version 0.2.0, with the value that changes nothing: with it they do not
# count, so that what older versions made stays valid.
_ADDED = {("instruct", "answer"): "title", ("ranker", "quantize"): "none"}
# Keys that change no result: how arrays are divided over devices.
_PLACING = (("retriever", "fsdp"),)
# What several processes divide over `mesh`.
_MESHED = ("finetune", "evaluate")
_NEEDS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "retrieve": ("prepare",),
    "profile": ("prepare",),
    "finetune": ("prepare", "profile"),
    "evaluate": ("prepare", "retrieve", "profile", "finetune"),
}


def run_stage(stage: str, config: Config, run: RunDirectory) -> None:
    """Runs one stage of a config in its run directory, unless it is done.

    Raises:
        UserError: a stage that it builds on is not done, several processes run what one can, or
            anything the stage itself refuses.
        Terminated: SIGTERM was received; what the stage has done is saved.
    """
    if processes.are_many() and stage in _MESHED:
        make_mesh(config.mesh, jax.devices())  # refuses one that leaves some of them out
    run.write_config(config)
    for needed in _NEEDS[stage]:
        run.stages.require(describe(needed, config, run))

    def check() -> None:
        if stage == "retrieve":
            check_processes(config.retriever)
        if stage == "finetune":  # a mistake in the config must not delete the ranker of the run
            tokenize(config, preparing.load(run.data).catalog)
            if config.ranker.quantize != "none":
                qwix()

    run.stages.run(describe(stage, config, run), lambda: _WORK[stage](config, run), check)


def compare_retrievers(config: Config, run: RunDirectory) -> list[RetrieverRow]:
    """Prepares the data, trains every retriever and returns a row for each.

    Raises:
        UserError: as `run_stage`.
    """
    run_stage("prepare", config, run)
    return compare(config, run)


def run_all(config: Config, run: RunDirectory) -> None:
    """Runs all stages in order.

    Raises:
        UserError: as `run_stage`.
    """
    for stage in STAGES:
        run_stage(stage, config, run)


def describe(stage: str, config: Config, run: RunDirectory) -> Stage:
    """What a stage is made from, and what it writes into its run directory."""
    models = models_of(config)
    outputs: dict[str, list[Path]] = {
        "prepare": preparing.files(run.data),
        "retrieve": [run.candidates(model) for model in models],
        "profile": [run.profiles],
        "finetune": [
            *(run.ranker / variant for variant in config.ranker.variants),
            run.items, run.instructions, run.metrics,
        ],
        "evaluate": [run.fusion, run.slates, run.results, run.report],
    }  # fmt: skip
    inputs = {
        "profile": [config.profile.weights if config.profile.kind == "llm" else None],
        "finetune": [config.ranker.weights, config.ranker.tokenizer],
    }
    return Stage(
        name=stage,
        settings=made_from(stage, config),
        inputs=tuple(path_of(name) for name in inputs.get(stage, []) if name),
        after=_NEEDS[stage],
        outputs=tuple(outputs[stage]),
        # What another config may have left is deleted with the rest.
        optional=(
            *(run.ranker / variant for variant in get_args(Variant)),
            *(run.ranker / f"{variant}.json" for variant in get_args(Variant)),
            *run.token_files(),
            run.vectors,
        )
        if stage == "finetune"
        else (),
        # A trained model is kept: it knows the settings and the data it was trained with.
        kept=tuple(map(run.retriever, models)) if stage == "retrieve" else (),
    )


def made_from(stage: str, config: Config) -> JsonObject:
    """The part of a config that a stage depends on."""
    values = to_dict(config)
    for (section, name), neutral in _ADDED.items():
        if values[section][name] == neutral:
            del values[section][name]
    for section, name in _PLACING:
        del values[section][name]
    keys = _MADE_FROM[stage]
    if stage == "finetune" and needs_proposals(config):
        keys = (*keys, "retriever")
    made: dict[str, object] = {key: values[key] for key in keys}
    if (
        stage == "profile"
    ):  # an LLM's profiles take long, so only settings that change their text count
        instruct = values["instruct"]
        made["instruct"] = [instruct[key] for key in ("history", "label", "item_kind", "verb")]
        made["template"] = instruct["template"]["profile"]
    return made


def prepare(config: Config, run: RunDirectory) -> None:
    """Ratings → catalog and leave-one-out split; the work of the leader."""
    processes.led(lambda: preparing.save(preparing.prepare(config.data), run.data))


def show_examples(config: Config, run: RunDirectory, count: int) -> str:
    """The first `count` examples of the last variant as text, then statistics of all variants.

    Raises:
        UserError: data or profiles are not prepared, or as `load_instructions`.
    """
    for needed in ("prepare", "profile"):
        run.stages.require(describe(needed, config, run))
    instructions = load_instructions(config, run)
    return "\n\n".join([*example_texts(instructions, count), statistics(config, instructions)])


def describe_data(run: RunDirectory) -> str:
    """The size of the prepared data in one line."""
    prepared = preparing.load(run.data)
    return (
        f"{prepared.split.num_users:,} users, {prepared.split.num_items:,} items, "
        f"{prepared.num_interactions:,} interactions"
    )


_WORK = {
    "prepare": prepare,
    "retrieve": retrieve,
    "profile": profile,
    "finetune": finetune,
    "evaluate": evaluate,
}
