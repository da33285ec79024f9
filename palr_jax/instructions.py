"""The instruction data of a run: prepared data, profiles, tokens and a retriever, joined.

Shapes: U users, P prefixes, K candidates.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax import processes
from palr_jax.config import Config, Variant, to_dict
from palr_jax.data import prepare as preparing
from palr_jax.data.catalog import Catalog
from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.files import fingerprint, read_arrays, reading, write_arrays
from palr_jax.instruct.affinity import three_hop
from palr_jax.instruct.examples import ExampleMaker, tuning_users
from palr_jax.instruct.item_tokens import ItemTokens, tokenize_items
from palr_jax.instruct.negatives import NegativeSampler, Retrieved, draw_moments
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.pipeline import visit
from palr_jax.instruct.profiles import category_table
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.instruct.statistics import marked_text, measure
from palr_jax.llm.tokenizer import Tokenizer
from palr_jax.progress import say
from palr_jax.ragged import Ragged
from palr_jax.retrieval import loop
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.untuned import make_tokenizer

# From how many items of its 3-hop affinity a user's short lists are filled.
_NEARBY = 50
# In how many moments of a user's history the retriever is asked for negatives.
_MOMENTS = 8


@dataclass(frozen=True)
class Instructions:
    """What the examples of all variants of a run have in common.

    Attributes:
        tokenizer: of the ranker.
        items: the tokens of every item.
        users: whose training items the ranker is tuned on.
        makers: makes the examples of each variant.
    """

    tokenizer: Tokenizer
    items: ItemTokens
    users: np.ndarray
    makers: dict[Variant, ExampleMaker]


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


def load_instructions(config: Config, run: RunDirectory) -> Instructions:
    """Everything that examples are made of, from a run's training interactions alone.

    With `instruct.retriever_negatives`, this trains a retriever the first time it is called.

    Raises:
        UserError: as `tokenize`, a file of the run is damaged, or there are no users to train
            that retriever on.
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
    retrieved = _retrieved(config, run, split, users) if instruct.retriever_negatives else None
    makers: dict[Variant, ExampleMaker] = {
        variant: ExampleMaker(
            train=split.train,
            profiles=run.read_profiles(),
            writer=PromptWriter(tokenizer, items.tokens, instruct),
            negatives=negatives,
            nearby=nearby,
            retrieved=retrieved,
            config=instruct,
            retrieval_share=config.ranker.retrieval_share if variant == "PALR_v2" else 0.0,
            seed=config.seed,
        )
        for variant in config.ranker.variants
    }
    return Instructions(tokenizer, items, users, makers)


def packing(config: Config) -> Packing:
    """The shapes of what each stream brings to a batch."""
    tuning = config.finetune
    return Packing(tuning.batch_size // tuning.streams, tuning.length, tuning.label_length)


def example_texts(instructions: Instructions, count: int) -> list[str]:
    """The first `count` examples of the last variant, their labels marked."""
    maker = list(instructions.makers.values())[-1]
    return [
        marked_text(example, instructions.tokenizer)
        for example in visit(maker, instructions.users, 0, count)
    ]


def statistics(config: Config, instructions: Instructions) -> str:
    """A line for every variant, and one about titles.

    Raises:
        UserError: an example does not fit even without history.
    """
    lines = [
        f"{variant}: {measure(maker, instructions.users, packing(config))}"
        for variant, maker in instructions.makers.items()
    ]
    items = instructions.items
    lines.append(f"{items.cut:,} of {len(items.tokens):,} titles cut")
    return "\n".join(lines)


def _retrieved(config: Config, run: RunDirectory, split: Split, users: np.ndarray) -> Retrieved:
    """What a retriever that has never seen the tuning users proposes for them.

    It is the run's retriever, with its settings, trained on the other users; their last training
    item stops it, so that no held-out item has a part in the instruction data.
    """
    directory = run.negatives / _mark(config, split)
    file = directory / "negatives.npz"
    if not file.exists():
        if processes.are_many():
            raise UserError(
                "instruct.retriever_negatives: their retriever is trained in one process: run "
                "`palr show-examples` with this config on one machine first"
            )
        others = np.setdiff1d(np.flatnonzero(split.train.lengths_R >= 2), users)
        if not len(others):
            raise UserError(
                "instruct.retriever_negatives needs users that the ranker is not tuned on, to "
                f"train a retriever: lower instruct.user_share ({config.instruct.user_share})"
            )
        say(f"retriever negatives: a retriever learns from the {len(others):,} other users")
        retriever = MODELS[config.retriever.model](config.retriever, split.num_items, config.seed)
        retriever.fit(_without_last(split, others), directory / "retriever")
        moments = draw_moments(split.train, users, config.seed, _MOMENTS)
        prefixes = Ragged.from_rows(
            split.train[user][:moment] for user in users for moment in moments[user]
        )
        top = retriever.recommend(prefixes, config.retriever.candidates)
        write_arrays(
            file,
            moments_P=moments.values_N,
            moments_U1=moments.offsets_R1,
            items_PK=np.asarray(top.item_UK, np.int32),
        )
    arrays = read_arrays(file, "moments_P", "moments_U1", "items_PK")
    with reading(file):
        moments = Ragged.checked(arrays["moments_P"], arrays["moments_U1"])
        if (len(moments), len(moments.values_N)) != (len(split.train), len(arrays["items_PK"])):
            raise ValueError("its arrays are of different users")
    return Retrieved(moments, arrays["items_PK"])


def _mark(config: Config, split: Split) -> str:
    """Names what these negatives are made from."""
    retriever = to_dict(config)["retriever"]
    made_from = [retriever, config.seed, config.instruct.user_share, _MOMENTS]
    return fingerprint([*made_from, loop.digest(split)])


def _without_last(split: Split, users: np.ndarray) -> Split:
    """A split of the training items of some users: the last of them validates and tests."""
    train = split.train.take(users)
    last_U = train.offsets_R1[1:] - 1
    held_U = train.values_N[last_U]
    shorter = Ragged.from_lengths(np.delete(train.values_N, last_U), train.lengths_R - 1)
    return Split(shorter, held_U, held_U, split.user_ids[users], split.num_items)
