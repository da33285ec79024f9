"""The finetune stage: every variant of the ranker, tuned on the instruction data of some users."""

from dataclasses import replace

from palr_jax.config import Config
from palr_jax.instruct.moments import MomentMaker
from palr_jax.instruct.pipeline import batches, whole_pass
from palr_jax.io.files import write_text
from palr_jax.io.progress import say
from palr_jax.parallel import processes
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ranking.base_model import count_parameters, make_model, with_head
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.instruction_data import (
    Instructions,
    example_texts,
    load_instructions,
    packing,
    statistics,
)
from palr_jax.training import loop
from palr_jax.training.feed import fixed_batches
from palr_jax.training.step import AnyBatch

# Instructions that stand in the report.
_SHOWN = 3


def finetune(config: Config, run: RunDirectory) -> None:
    """Tunes every variant of the ranker on the instruction data of some of the users."""
    instructions = load_instructions(config, run)
    tokenizer, items, users = instructions.tokenizer, instructions.items, instructions.users
    run.write_tokens(tokenizer, items.tokens)
    run.write_vectors(instructions.vectors)
    # This also meets most examples that do not fit, before any time goes into training.
    figures = processes.led(lambda: statistics(config, instructions))
    say(f"tuning on {len(users):,} users\n{figures}")
    write_text(run.instructions, "\n\n".join([figures, *example_texts(instructions, _SHOWN)]))
    shards, tuning = Shards(make_mesh(config.mesh)), config.finetune
    for variant, maker in instructions.makers.items():
        model = make_model(
            config.ranker, tokenizer.vocab_size, tuning.length, config.ranker_seed, shards
        )
        shape, validation = packing(config, variant), []
        if isinstance(maker, MomentMaker):
            model = with_head(model, config, list(instructions.vectors.values()), shards)
            validation = _validation(config, instructions, maker, shards)
        say(f"{variant}: {count_parameters(model):,} parameters")
        streams = [
            batches(maker, users, shape, number, tuning.streams) for number in range(tuning.streams)
        ]
        directory = run.ranker / variant
        loop.finetune(
            model, streams, tuning, shards, directory, run.metrics, variant, validation,
            config.ranker_seed,
        )  # fmt: skip


def _validation(
    config: Config, instructions: Instructions, maker: MomentMaker, shards: Shards
) -> list[AnyBatch]:
    """All moments of the tuning users that are held out of tuning, with their priors."""
    if not len(instructions.held_out):
        return []
    maker = replace(maker, prior_dropout=0.0, with_text=False)
    users = maker.usable(instructions.held_out)
    rows = whole_pass(maker, users, packing(config, "PALR_v2"))
    return fixed_batches(rows, config.finetune.batch_size, shards)
