"""Checks that every slate of every user is distinct, unseen and from the candidates.

    palr prepare --config configs/ml-1m.yaml
    python tools/check_slates.py --run runs/ml-1m

The guarantee is the trie's and not the model's, so a tiny random model will do. The candidates are
50 random unseen items, for one user in ten fewer than a slate has places. All users are written
for greedily, by the best item, by draws and by `score`; every tenth from the whole catalog too.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from flax import nnx

from palr_jax.data import prepare as preparing
from palr_jax.data.catalog import Catalog
from palr_jax.decoding.generate import Mode
from palr_jax.evaluation.fusion import slates
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.io.progress import progress
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import Ranker
from palr_jax.ranking.write import write_from_candidates, write_from_catalog
from palr_jax.run_directory import RunDirectory

ITEMS, CANDIDATES = 10, 50


def tiny_ranker(catalog: Catalog, instruct: InstructConfig, batch_size: int = 128) -> Ranker:
    """A random model of one layer with a tokenizer for the catalog."""
    titles = [title for title in catalog.titles if title.strip()]
    tokenizer = train_tokenizer(titles[:5000], 4096)
    items = tokenize_items(catalog, tokenizer, instruct).tokens
    shape = LlamaConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=8, ffn_dim=16, max_length=4096,
    )  # fmt: skip
    model = Llama(shape, nnx.Rngs(params=0))
    writer = PromptWriter(tokenizer, items, instruct)
    return Ranker(model, writer, items, batch_size, Shards(make_mesh(MeshConfig())))


def random_candidates(histories: Ragged, items: int, seed: int) -> np.ndarray:
    """Unseen items of each user, [U, C]; -1 behind the last where there are few."""
    rng = np.random.default_rng(seed)
    candidates_UC = np.full((len(histories), CANDIDATES), -1, np.int32)
    for user in range(len(histories)):
        unseen = np.setdiff1d(np.arange(items), histories[user])
        count = CANDIDATES if rng.random() < 0.9 else rng.integers(1, ITEMS)
        chosen = rng.permutation(unseen)[:count]
        candidates_UC[user, : len(chosen)] = chosen
    return candidates_UC


def check(slate_UK: np.ndarray, histories: Ragged, candidates_UC: np.ndarray | None) -> None:
    """Raises AssertionError unless every slate is as promised."""
    for user, slate_K in enumerate(slate_UK):
        items = slate_K[slate_K >= 0]
        wanted = ITEMS
        if candidates_UC is not None:
            candidates_C = candidates_UC[user][candidates_UC[user] >= 0]
            wanted = min(ITEMS, len(candidates_C))
            assert np.isin(items, candidates_C).all(), f"user {user}: not from the candidates"
        assert len(items) == wanted, f"user {user}: {len(items)} items, not {wanted}"
        assert len(np.unique(items)) == len(items), f"user {user}: an item twice"
        assert not np.isin(items, histories[user]).any(), f"user {user}: a seen item"


def check_all(ranker: Ranker, histories: Ragged, seed: int) -> dict[str, int]:
    """How many slates of each kind were checked."""
    candidates_UC = random_candidates(histories, len(ranker.items), seed)
    profiles = [""] * len(histories)
    checked = {}
    for mode in get_args(Mode):
        with progress(mode, len(histories), "users") as advance:
            slate_UK = write_from_candidates(
                ranker, histories, profiles, candidates_UC, ITEMS, advance, mode
            )
        check(slate_UK, histories, candidates_UC)
        checked[mode] = len(slate_UK)
    with progress("score", len(histories), "users") as advance:
        logp_UC = ranker.score(histories, profiles, candidates_UC, advance)
    slate_UK = np.where(
        -np.sort(-logp_UC, axis=1)[:, :ITEMS] > -np.inf, slates(candidates_UC, logp_UC), -1
    )
    check(slate_UK, histories, candidates_UC)
    np.testing.assert_allclose(np.exp(logp_UC).sum(axis=1), 1, atol=1e-4)
    checked["score"] = len(slate_UK)
    some = histories.take(np.arange(0, len(histories), 10))
    with progress("catalog", len(some), "users") as advance:
        slate_UK = write_from_catalog(ranker, some, profiles[: len(some)], ITEMS, advance)
    check(slate_UK, some, None)
    checked["catalog"] = len(slate_UK)
    return checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run directory with data")
    run = parser.parse_args().run
    prepared = preparing.load(run / "data")
    config = RunDirectory(run).read_config().instruct
    # A short history, since the guarantee is not the prompt's; a small tokenizer takes more tokens.
    instruct = replace(config, title_tokens=48, history=2, length=4096)
    ranker = tiny_ranker(prepared.catalog, instruct)
    checked = check_all(ranker, prepared.split.histories("test"), seed=0)
    print(f"{run}: all as promised: {', '.join(f'{n:,} {kind}' for kind, n in checked.items())}")


if __name__ == "__main__":
    main()
