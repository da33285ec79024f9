"""The instruction data of a run: prepared data, profiles, tokens and a retriever, joined.

Shapes: U users, P prefixes, K candidates.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.config import Config, Variant
from palr_jax.data import prepare as preparing
from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.affinity import three_hop
from palr_jax.instruct.examples import ExampleMaker, tuning_users
from palr_jax.instruct.item_tokens import ItemTokens, tokenize_items
from palr_jax.instruct.moments import MomentMaker
from palr_jax.instruct.negatives import NegativeSampler
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.pipeline import visit
from palr_jax.instruct.profiles import category_table
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.instruct.statistics import (
    marked_text,
    measure,
    measure_moments,
    moment_text,
)
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged
from palr_jax.ranking.base_model import make_tokenizer
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.item_vectors import language_model_vectors, word_vectors
from palr_jax.stages.proposals import Proposals, propose_moments

# From how many items of its 3-hop affinity a user's short lists are filled.
_NEARBY = 50


@dataclass(frozen=True)
class Instructions:
    """What the examples of all variants of a run have in common.

    Attributes:
        tokenizer: of the ranker.
        items: the tokens of every item.
        users: whose training items the ranker is tuned on.
        held_out: tuning users that the ranker is validated on and not tuned on.
        makers: makes the examples of each variant.
        vectors: the item vectors that PALR_v2 gets, by their kind.
    """

    tokenizer: Tokenizer
    items: ItemTokens
    users: np.ndarray
    held_out: np.ndarray
    makers: dict[Variant, ExampleMaker | MomentMaker]
    vectors: dict[str, np.ndarray]


def tokenize(config: Config, catalog: Catalog) -> tuple[Tokenizer, ItemTokens]:
    """The tokenizer of the ranker and the tokens of every item.

    Raises:
        UserError: the tokenizer cannot be read, an item does not fit, or a label could be longer
            than fits into a row (packing could not use such an example).
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


def load_instructions(config: Config, run: RunDirectory) -> Instructions:
    """Everything that examples are made of, from a run's training interactions alone.

    Where examples need a retriever's candidates, this trains it the first time it is called.

    Raises:
        UserError: as `tokenize` and `propose_moments`, or a file of the run is damaged.
    """
    prepared = preparing.load(run.data)
    split, instruct = prepared.split, config.instruct
    tokenizer, items = tokenize(config, prepared.catalog)
    users = tuning_users(split.train, instruct.user_share, config.seed)
    nearby = Ragged.from_rows([[]] * split.num_users)
    if instruct.enrich_history or instruct.enrich_label:
        nearby = three_hop(split.train, split.num_items, users, _NEARBY)
    negatives = NegativeSampler.build(
        split.train,
        split.num_items,
        category_table(prepared.catalog),
        instruct.category_negatives,
        instruct.retriever_negatives,
    )
    proposals = None
    if needs_proposals(config):
        proposals = propose_moments(config, run, prepared, users)
    retrieved = None if proposals is None else proposals.retrieved
    makers: dict[Variant, ExampleMaker | MomentMaker] = {
        variant: ExampleMaker(
            train=split.train,
            profiles=run.read_profiles(),
            writer=PromptWriter(tokenizer, items.tokens, instruct),
            negatives=negatives,
            nearby=nearby,
            retrieved=retrieved if instruct.retriever_negatives else None,
            config=instruct,
            retrieval_share=config.ranker.retrieval_share if variant == "PALR_v2" else 0.0,
            seed=config.ranker_seed,
        )
        for variant in config.ranker.variants
    }
    held_out = users[:0]
    vectors: dict[str, np.ndarray] = {}
    if proposals is not None and learns_moments(config):
        maker = MomentMaker(
            train=split.train,
            profiles=run.read_profiles(),
            writer=PromptWriter(tokenizer, items.tokens, instruct),
            items=items.tokens,
            retrieved=proposals.retrieved,
            config=instruct,
            most=config.finetune.moments,
            prior_dropout=config.finetune.prior_dropout,
            reads_titles=config.ranker.reads == "titles",
            with_text=config.finetune.text_loss > 0,
            seed=config.ranker_seed,
        )
        makers["PALR_v2"] = maker
        users, held_out = _divided(maker.usable(users), config)
        vectors = _item_vectors(config, run, prepared.catalog, proposals)
    return Instructions(tokenizer, items, users, held_out, makers, vectors)


def _item_vectors(
    config: Config, run: RunDirectory, catalog: Catalog, proposals: Proposals
) -> dict[str, np.ndarray]:
    """The item vectors that the config names, [I, R] each, by their kind."""
    vectors: dict[str, np.ndarray] = {}
    for kind in config.ranker.item_embeddings:
        match kind:
            case "retriever":
                assert proposals.vectors_IR is not None  # the config was checked
                vectors[kind] = proposals.vectors_IR
            case "words":
                vectors[kind] = word_vectors(run, catalog)
            case "language_model":
                weights = str(config.ranker.title_weights or config.ranker.weights)
                vectors[kind] = language_model_vectors(run, catalog, weights)
    return vectors


def learns_moments(config: Config) -> bool:
    """Whether PALR_v2 is tuned on the retriever's candidates."""
    return config.finetune.objective == "candidates" and "PALR_v2" in config.ranker.variants


def needs_proposals(config: Config) -> bool:
    """Whether the instruction data are made with a retriever's candidates."""
    return learns_moments(config) or config.instruct.retriever_negatives > 0


def _divided(users: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The users to tune on, and those to validate on.

    Raises:
        UserError: one of them would be empty.
    """
    count = round(config.finetune.validation_share * len(users))
    if len(users) <= count or (config.finetune.validation_share and not count):
        raise UserError(
            f"{len(users)} tuning users have the retriever's candidates to learn from: too few for "
            f"finetune.validation_share ({config.finetune.validation_share}); raise "
            "instruct.user_share"
        )
    order = np.random.default_rng([config.ranker_seed, len(users)]).permutation(users)
    return np.sort(order[count:]), np.sort(order[:count])


def packing(config: Config, variant: Variant) -> Packing:
    """The shapes of what each stream brings to a batch."""
    tuning = config.finetune
    label = tuning.label_length
    if variant == "PALR_v2" and learns_moments(config):
        label = tuning.moments
    return Packing(tuning.batch_size // tuning.streams, tuning.length, label)


def example_texts(instructions: Instructions, count: int) -> list[str]:
    """The first `count` examples of the last variant, their labels marked."""
    maker, tokenizer = list(instructions.makers.values())[-1], instructions.tokenizer
    users = instructions.users
    if isinstance(maker, MomentMaker):
        tokens = instructions.items.tokens
        return [
            moment_text(example, tokenizer, tokens) for example in visit(maker, users, 0, count)
        ]
    return [marked_text(example, tokenizer) for example in visit(maker, users, 0, count)]


def _measured(maker: ExampleMaker | MomentMaker, users: np.ndarray, packing: Packing) -> str:
    if isinstance(maker, MomentMaker):
        return str(measure_moments(maker, users, packing))
    return str(measure(maker, users, packing))


def statistics(config: Config, instructions: Instructions) -> str:
    """A line for every variant, and one about titles.

    Raises:
        UserError: an example does not fit even without history.
    """
    lines = [
        f"{variant}: {_measured(maker, instructions.users, packing(config, variant))}"
        for variant, maker in instructions.makers.items()
    ]
    items = instructions.items
    lines.append(f"{items.cut:,} of {len(items.tokens):,} titles cut")
    return "\n".join(lines)
