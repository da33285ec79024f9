"""Tokens a second of instruction data, from disk to packed batch, on one core.

    python tools/bench/instructions.py --config configs/quickstart.yaml

Side by side: this pipeline, which copies tokens that were made once; tokenising whole strings with
SentencePiece; and the same with Hugging Face `datasets` and `tokenizers`. The texts of the two
others are made beforehand and not counted; all three pack with the same code.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece as spm

from palr_jax.config import Variant, load_config
from palr_jax.instruct.examples import ExampleMaker
from palr_jax.instruct.packing import Example, Packing, pack
from palr_jax.instruct.pipeline import WINDOW, batches, visit
from palr_jax.run_directory import RunDirectory
from palr_jax.stages import run as stages
from palr_jax.stages.instruction_data import Instructions, load_instructions

Texts = list[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="that the pipeline runs")
    arguments = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    config = load_config(arguments.config, {})
    run = RunDirectory(Path("runs") / config.name)
    for stage in ("prepare", "profile"):
        stages.run_stage(stage, config, run)
    start = time.perf_counter()
    made = load_instructions(config, run)
    print(f"from disk to the first example: {time.perf_counter() - start:.1f} s")
    packing = Packing(
        config.finetune.batch_size, config.finetune.length, config.finetune.label_length
    )
    for variant in made.makers:
        ours(made, variant, packing, arguments.seconds)
    whole_strings(made, config.ranker.variants[-1], packing)


def ours(made: Instructions, variant: Variant, packing: Packing, seconds: float) -> None:
    """The pipeline as training uses it."""
    iterator = iter(batches(made.makers[variant], made.users, packing))
    next(iterator)
    tokens = rows = 0
    memory = [resident()]
    start = shown = time.process_time()
    while (now := time.process_time()) - start < seconds:
        batch = next(iterator)
        tokens += int((batch["segment_BT"] > 0).sum())
        rows += len(batch["segment_BT"])
        if now - shown > seconds / 4:
            shown = now
            memory.append(resident())
    rate = tokens / (time.process_time() - start)
    padding = 1 - tokens / (rows * packing.length)
    epochs = rows * packing.length * (1 - padding) / tokens_of_epoch(made, variant)
    print(
        f"{variant}: {rate:,.0f} tokens/s, padding {padding:.1%}, {epochs:.1f} epochs, resident "
        f"{' → '.join(f'{megabytes:.0f}' for megabytes in memory)} MB"
    )


def maker_of(made: Instructions, variant: Variant) -> ExampleMaker:
    maker = made.makers[variant]
    assert isinstance(maker, ExampleMaker)
    return maker


def tokens_of_epoch(made: Instructions, variant: Variant) -> int:
    examples = visit(maker_of(made, variant), made.users, 0, len(made.users))
    return sum(len(x.prompt_T) + len(x.label_M) - 1 for x in examples)


def whole_strings(made: Instructions, variant: Variant, packing: Packing) -> None:
    """The same examples as texts, tokenised when they are needed."""
    model = made.tokenizer.files().get("tokenizer.model")
    if model is None:
        print("whole strings: only with a SentencePiece model")
        return
    pieces = spm.SentencePieceProcessor(model_proto=model)
    examples = list(visit(maker_of(made, variant), made.users, 0, WINDOW))
    texts = [
        (made.tokenizer.decode(x.prompt_T), made.tokenizer.decode(x.label_M)) for x in examples
    ]
    report("SentencePiece, whole strings", texts, packing, lambda: with_pieces(pieces, texts))
    try:
        import datasets  # noqa: F401, PLC0415
    except ImportError:
        print("Hugging Face datasets + tokenizers: not installed (pip install 'palr-jax[bench]')")
        return
    fast = as_tokenizers(pieces)
    report("Hugging Face datasets + tokenizers", texts, packing, lambda: with_datasets(fast, texts))


def report(
    name: str, texts: Texts, packing: Packing, tokenize: Callable[[], list[Example]]
) -> None:
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        packed = pack(tokenize(), packing, np.random.default_rng(0))
        best = max(best, int((packed["segment_RT"] > 0).sum()) / (time.process_time() - start))
    print(f"{name}: {best:,.0f} tokens/s (best of 3 over {len(texts):,} examples)")


def with_pieces(pieces: spm.SentencePieceProcessor, texts: Texts) -> list[Example]:
    return [example(pieces.encode(prompt), pieces.encode(label)) for prompt, label in texts]


def with_datasets(fast: object, texts: Texts) -> list[Example]:
    import datasets  # noqa: PLC0415

    datasets.disable_progress_bars()
    prompts, labels = zip(*texts, strict=True)
    columns = {"prompt": list(prompts), "label": list(labels)}
    # Named fingerprints: nothing is cached, so nothing needs to be hashed.
    table = datasets.Dataset(datasets.table.InMemoryTable.from_pydict(columns), fingerprint="a")

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {
            name: [encoding.ids for encoding in fast.encode_batch(batch[name])]  # type: ignore[attr-defined]
            for name in ("prompt", "label")
        }

    ids = table.map(tokenize, batched=True, keep_in_memory=True, new_fingerprint="b").with_format(
        "numpy"
    )
    return [example(row["prompt"], row["label"]) for row in ids]


def example(prompt: Sequence[int], label: Sequence[int]) -> Example:
    return Example(np.asarray(prompt, np.int32), np.asarray([*label, 2], np.int32), False, False)


def as_tokenizers(pieces: spm.SentencePieceProcessor) -> object:
    """The SentencePiece model as Hugging Face has it: a BPE with byte fallback."""
    import tokenizers as hf  # noqa: PLC0415

    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = []
    for piece, rank in vocab.items():
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        if not pieces.is_byte(rank) and not pieces.is_control(rank):
            merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    fast = hf.Tokenizer(
        hf.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")]
    )
    return fast


def resident() -> float:
    """Megabytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
