"""A small data set with imported weights, and rankers tuned from them."""

from pathlib import Path

from palr_jax.cli import main
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from tests.llm.variants import VARIANTS, write_checkpoint
from tests.world import ITEMS, write_world


def write_tuned(folder: Path, tuning: list[str]) -> None:
    """Writes a run that was tuned from weights; `folder` is the working directory.

    Args:
        folder: gets `hf` (the weights as Hugging Face writes them), `weights` and the run.
        tuning: options of the stages up to finetune.
    """
    write_world(folder)
    tokenizer = train_tokenizer([f'"Story, {i} ({1950 + i})"' for i in range(ITEMS)], 500)
    config = VARIANTS["llama3"] | {
        "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 512
    }  # fmt: skip
    write_checkpoint(folder / "hf", config)
    for name, content in tokenizer.files().items():
        (folder / "hf" / name).write_bytes(content)
    assert main(["import-weights", "--from", "hf", "--to", "weights"]) == 0
    for stage in ("prepare", "profile", "finetune"):
        assert main([stage, *tuning]) == 0
