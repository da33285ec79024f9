"""The stages of a run: prepare → retrieve → profile → finetune → evaluate.

Each reads and writes the run directory, and is skipped when it is done and nothing it was made
from has changed.

Shapes: U users, C candidates.
"""

from dataclasses import replace
from typing import Any, get_args

import numpy as np

from palr_jax import comparison
from palr_jax.config import Config, to_dict
from palr_jax.data import prepare as preparing
from palr_jax.data.catalog import Catalog
from palr_jax.data.split import Part
from palr_jax.errors import UserError
from palr_jax.evaluation.metrics import hit_rate, ndcg
from palr_jax.files import write_arrays
from palr_jax.instruct.examples import ExampleMaker, tuning_users
from palr_jax.instruct.item_tokens import ItemTokens, tokenize_items
from palr_jax.instruct.negatives import NegativeSampler
from palr_jax.instruct.pipeline import Packing, batches
from palr_jax.instruct.profiles import category_table, keyword_profiles
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizer import Tokenizer
from palr_jax.progress import say
from palr_jax.ranker import count_parameters, make_model, make_tokenizer
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.training.loop import finetune as tune

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
        UserError: a stage that it builds on is not done, or anything the stage itself refuses.
    """
    run.write_config(config)
    for needed in _NEEDS[stage]:
        run.require(needed, made_from(needed, config))
    outputs = {
        "prepare": [run.data],
        "retrieve": [run.path / "retriever"],
        "profile": [run.profiles],
        "finetune": [run.ranker, run.metrics],
        "evaluate": [run.fusion, run.slates, run.results, run.report],
    }
    work = _WORK[stage]
    if stage == "finetune":  # a mistake in the config must not cost the ranker that is there
        tokenize(config, preparing.load(run.data).catalog)
    run.run_stage(stage, made_from(stage, config), outputs[stage], lambda: work(config, run))


def run_all(config: Config, run: RunDirectory) -> None:
    """Runs all stages in order."""
    for stage in STAGES:
        run_stage(stage, config, run)


def made_from(stage: str, config: Config) -> dict[str, Any]:
    """The part of a config that a stage depends on."""
    values = to_dict(config)
    return {key: values[key] for key in _MADE_FROM[stage]}


def prepare(config: Config, run: RunDirectory) -> None:
    """Ratings → catalog and leave-one-out split."""
    preparing.save(preparing.prepare(config.data), run.data)


def retrieve(config: Config, run: RunDirectory) -> None:
    """Trains the retriever (and Popularity to compare with) and proposes candidates."""
    split = preparing.load(run.data).split
    for name in comparison.retrievers(config):
        settings = replace(config.retriever, model=name)
        retriever = MODELS[name](settings, split.num_items, config.seed)
        retriever.fit(split, run.retriever(name))
        arrays: dict[str, np.ndarray] = {}
        for part in get_args(Part):
            histories = split.histories(part)
            top = retriever.recommend(histories, config.retriever.candidates)
            arrays[f"{part}_items"], arrays[f"{part}_scores"] = top.item_UK, top.score_UK
            arrays[f"{part}_rank"] = retriever.target_ranks(histories, split.targets(part))
        write_arrays(run.candidates(name), **arrays)
        rank_U = arrays["test_rank"]
        recall = hit_rate(rank_U, config.retriever.candidates).mean()
        say(
            f"{comparison.ROW_NAMES[name]}: test HR@10 {hit_rate(rank_U, 10).mean():.4f}, NDCG@10 "
            f"{ndcg(rank_U, 10).mean():.4f}, Recall@{config.retriever.candidates} {recall:.4f}"
        )


def profile(config: Config, run: RunDirectory) -> None:
    """One profile sentence per user, from training items alone."""
    prepared = preparing.load(run.data)
    table = category_table(prepared.catalog)
    sentences = keyword_profiles(
        prepared.split.train, table, config.profile, config.instruct.item_kind
    )
    run.write_profiles(prepared.split.user_ids, sentences)


def tokenize(config: Config, catalog: Catalog) -> tuple[Tokenizer, ItemTokens]:
    """The tokenizer of the ranker and the tokens of every item.

    Raises:
        UserError: the tokenizer cannot be read, an item does not fit, or a label could be longer
            than a row has room for (packing would meet an example that it cannot place).
    """
    tokenizer = make_tokenizer(config.ranker, config.instruct, catalog)
    items = tokenize_items(catalog, tokenizer, config.instruct)
    longest = int(np.sort(items.tokens.lengths_R)[-config.instruct.label :].sum()) + 1
    if longest > config.finetune.label_length:
        raise UserError(
            f"a label can have {longest} tokens: raise finetune.label_length "
            f"({config.finetune.label_length}) or lower instruct.title_tokens"
        )
    return tokenizer, items


def finetune(config: Config, run: RunDirectory) -> None:
    """Tunes every variant of the ranker on the instruction data of some of the users."""
    prepared = preparing.load(run.data)
    split = prepared.split
    tokenizer, items = tokenize(config, prepared.catalog)
    if items.cut:
        say(f"{items.cut:,} titles are longer than {config.instruct.title_tokens} tokens: cut")
    run.write_tokens(tokenizer, items.tokens)

    table = category_table(prepared.catalog)
    negatives = NegativeSampler.build(
        split.train, split.num_items, table, config.instruct.category_negatives
    )
    users = tuning_users(split.train, config.instruct.user_share, config.seed)
    say(f"tuning on {len(users):,} of {split.num_users:,} users")
    packing = Packing(
        config.finetune.batch_size, config.finetune.length, config.finetune.label_length
    )
    for variant in config.ranker.variants:
        maker = ExampleMaker(
            train=split.train,
            profiles=run.read_profiles(),
            writer=PromptWriter(tokenizer, items.tokens, config.instruct),
            negatives=negatives,
            config=config.instruct,
            retrieval_share=config.ranker.retrieval_share if variant == "PALR_v2" else 0.0,
            seed=config.seed,
        )
        model = make_model(config.ranker, tokenizer.vocab_size, config.finetune.length, config.seed)
        say(f"{variant}: {count_parameters(model):,} parameters")
        data = batches(maker, users, packing)
        tune(model, data, config.finetune, run.ranker / variant, run.metrics, variant)


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
    "evaluate": comparison.evaluate,
}
