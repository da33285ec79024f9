"""Ranking 50 candidates with SmolLM2-135M: this package beside transformers, and beside a prefill.

    pip install -e '.[bench]'
    palr import-weights --from smollm2 --to weights/smollm2
    palr export --weights weights/smollm2 --to weights/smollm2-hf
    palr prepare --config configs/quickstart.yaml
    python tools/bench/ranking.py floor --batch 8 --dtype bfloat16
    python tools/bench/ranking.py prefix --batch 8 --dtype bfloat16
    python tools/bench/ranking.py compare --batch 8 --dtype bfloat16
    python tools/bench/ranking.py memory --batch 1 --dtype bfloat16
    python tools/bench/ranking.py growth --dtype bfloat16

`floor` divides the times of `score` and `generate` by that of a bare prefill of the same prompts:
its hidden states and the logits behind the last token. `prefix` times `score` with instructions of
several lengths, read once for all users and once for each. `compare` runs transformers on the same
weights, prompts and candidates in turn with this package: `generate` with a
`prefix_allowed_tokens_fn` over the same trie, and scoring with a key-value cache that is expanded
to the candidates. `memory` has a process for each. `growth` goes from 10 to 200 candidates.
Prompts are those of real users of MovieLens ml-latest-small; item-kNN proposes the candidates.

Shapes: S slots of a trie.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.config import load_config
from palr_jax.data import prepare as preparing
from palr_jax.decoding.generate import generate
from palr_jax.decoding.score import score
from palr_jax.decoding.score_plan import plan_score
from palr_jax.decoding.trie import build
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.instruct.profiles import category_table, keyword_profiles
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.checkpoints.loading import load
from palr_jax.llm.llama import Llama
from palr_jax.llm.prefix import NO_PREFIX, Prefix
from palr_jax.ragged import Ragged
from palr_jax.ranking.base_model import make_tokenizer
from palr_jax.ranking.batches import padded
from palr_jax.retrieval.models import MODELS
from palr_jax.trees import State

CONFIG = Path("configs/quickstart.yaml")
FOLDER = Path("weights/smollm2-hf")
ITEMS = 10


@dataclass(frozen=True)
class Users:
    """Prompts and candidates of some users.

    Attributes:
        prompts: tokens of each prompt.
        items: tokens of every item of the catalog.
        candidates_BC: int, the candidates of each user.
        prefix: what all prompts begin with.
    """

    prompts: Ragged
    items: Ragged
    candidates_BC: np.ndarray
    prefix: Prefix

    def take(self, count: int) -> "Users":
        """The first `count` users."""
        rows = np.arange(count)
        return replace(
            self, prompts=self.prompts.take(rows), candidates_BC=self.candidates_BC[:count]
        )


def some_users(count: int, candidates: int, instructions: int = 1) -> Users:
    """Users from the middle of the data set, whose prompts are of ordinary length.

    Their prompts begin with as many instructions.
    """
    room = str(1024 + 20 * candidates + 20 * instructions)
    keys = ("instruct.length", "finetune.length")
    config = load_config(CONFIG, {"ranker.weights": str(FOLDER)} | dict.fromkeys(keys, room))
    instruction = " ".join([config.instruct.template.recommend_retrieval] * instructions)
    template = replace(config.instruct.template, recommend_retrieval=instruction)
    config = replace(config, instruct=replace(config.instruct, template=template))
    prepared = preparing.load(Path("runs") / config.name / "data")
    tokenizer = make_tokenizer(config.ranker, config.instruct, prepared.catalog)
    items = tokenize_items(prepared.catalog, tokenizer, config.instruct).tokens
    retriever = MODELS["item_knn"](config.retriever, prepared.split.num_items, 0)
    with tempfile.TemporaryDirectory() as folder:
        retriever.fit(prepared.split, Path(folder))
    histories = prepared.split.histories("test")
    chosen = np.flatnonzero(histories.lengths_R >= config.instruct.history)[:count]
    histories = histories.take(chosen)
    candidates_BC = retriever.recommend(histories, candidates).item_UK
    table = category_table(prepared.catalog)
    profiles = keyword_profiles(histories, table, config.profile, config.instruct)
    writer = PromptWriter(tokenizer, items, config.instruct)
    prompts = Ragged.from_rows(
        writer.prompt(histories[row], profiles[row], candidates_BC[row]).tokens_T
        for row in range(count)
    )
    shared = Prefix(writer.prefix_length(with_candidates=True))
    return Users(prompts, items, candidates_BC, shared)


class Ours:
    """This package."""

    def __init__(self, dtype: str) -> None:
        self.model, _ = load(FOLDER, dtype=dtype)

    def score(self, users: Users) -> np.ndarray:
        """Log-probabilities of the candidates, [B, C]."""
        plan = plan_score(build(users.items, users.candidates_BC))
        return np.asarray(score(self.model, *padded(users.prompts), plan, prefix=users.prefix))

    def generate(self, users: Users) -> tuple[np.ndarray, int]:
        """Slots of the slates, [B, K], and forward passes one after the other."""
        trie = build(users.items, users.candidates_BC)
        every_BC = np.ones(users.candidates_BC.shape, bool)
        slate = generate(
            self.model, *padded(users.prompts), trie, every_BC, ITEMS, prefix=users.prefix
        )
        return np.asarray(slate.slot_BK), int(slate.passes)

    def prefill(self, users: Users) -> None:
        """The floor: the prompts alone."""
        graph, weights = self._parts
        _prefill(graph, weights, *padded(users.prompts)).block_until_ready()

    @cached_property
    def _parts(self) -> tuple[nnx.GraphDef[Llama], State]:
        graph, weights = nnx.split(self.model)
        return graph, weights


def _prefill_of(
    graph: nnx.GraphDef[Llama], weights: State, tokens_BT: jax.Array, length_B: jax.Array
) -> jax.Array:
    model = nnx.merge(graph, weights)
    hidden_BTD = model.hidden(tokens_BT)
    return model.logits(
        jnp.take_along_axis(hidden_BTD, length_B[:, None, None] - 1, axis=1)[:, 0]
    ).argmax(-1)


_prefill = jax.jit(_prefill_of, static_argnums=0)


def medians(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, all in turn, after one run of each that does not count.

    Without repeats that first run counts, with the time that compiling it took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    if repeats:
        for work in works.values():
            work()
    for _ in range(max(repeats, 1)):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def show(seconds: dict[str, list[float]], batch: int, against: str) -> None:
    """A line for each work: its median, its spread and its ratio to one of them."""
    base = statistics.median(seconds[against])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:24} {median:8.2f} s ({min(values):.2f} … {max(values):.2f}) "
            f"{batch / median:7.3f} users/s  {median / base:6.2f} x {against}"
        )


def floor(arguments: argparse.Namespace) -> None:
    users = some_users(arguments.batch, arguments.candidates)
    ours = Ours(arguments.dtype)
    describe(users, arguments)
    works: dict[str, Callable[[], Any]] = {
        "prefill": partial(ours.prefill, users),
        "score": partial(ours.score, users),
        "generate": partial(ours.generate, users),
    }
    show(medians(works, arguments.repeats), arguments.batch, "prefill")


def prefix(arguments: argparse.Namespace) -> None:
    ours = Ours(arguments.dtype)
    for instructions in (1, 8, 32):
        users = some_users(arguments.batch, arguments.candidates, instructions)
        describe(users, arguments)
        print(f"of which all begin with {users.prefix.length}")
        apart = replace(users, prefix=NO_PREFIX)
        works: dict[str, Callable[[], Any]] = {
            "read for each user": partial(ours.score, apart),
            "read once": partial(ours.score, users),
        }
        show(medians(works, arguments.repeats), arguments.batch, "read for each user")


def compare(arguments: argparse.Namespace) -> None:
    from ranking_transformers import Theirs  # noqa: PLC0415  # only this needs torch

    users = some_users(arguments.batch, arguments.candidates)
    ours, theirs = Ours(arguments.dtype), Theirs(FOLDER, arguments.dtype)
    describe(users, arguments)
    for work in (ours.score, ours.generate, theirs.warm_up):
        work(users)  # compiles, or fills caches
    seconds: dict[str, list[float]] = {}
    results: dict[str, Any] = {}
    # Scoring goes user by user: its time for all is that for some of them.
    scored = users.take(min(arguments.batch, arguments.scored))
    scale = arguments.batch / len(scored.prompts)
    works: dict[str, tuple[Callable[[], Any], float]] = {
        "transformers generate": (lambda: theirs.generate(users), 1.0),
        "generate": (partial(ours.generate, users), 1.0),
        "transformers scoring": (lambda: theirs.score(scored), scale),
        "score": (partial(ours.score, users), 1.0),
    }  # fmt: skip
    for _ in range(arguments.repeats):
        for name, (work, factor) in works.items():
            start = time.perf_counter()
            results[name] = work()
            seconds.setdefault(name, []).append(factor * (time.perf_counter() - start))
    show(seconds, arguments.batch, "transformers generate")
    agree(results, len(scored.prompts))


def agree(results: dict[str, Any], scored: int) -> None:
    """How often both sides say the same, and in how many passes."""
    (mine_BK, passes), (theirs_BK, steps) = results["generate"], results["transformers generate"]
    same_B = (mine_BK == theirs_BK).all(axis=1)
    print(f"passes one after the other: {passes}, transformers {steps}")
    print(f"slates: {same_B.sum()} of {len(same_B)} equal in all {ITEMS} places")
    mine_BC, theirs_BC = results["score"][:scored], results["transformers scoring"]
    best = [np.argsort(-logp_BC, kind="stable")[:, :ITEMS] for logp_BC in (mine_BC, theirs_BC)]
    same_B = (best[0] == best[1]).all(axis=1)
    gap = np.abs(mine_BC - theirs_BC).max()
    print(f"scores: at most {gap:.1e} apart, {same_B.sum()} of {len(same_B)} slates equal")


def describe(users: Users, arguments: argparse.Namespace) -> None:
    lengths = users.prompts.lengths_R
    plan = plan_score(build(users.items, users.candidates_BC))
    print(
        f"{arguments.batch} users, {arguments.dtype}: prompts of {lengths.mean():.0f} tokens "
        f"(padded to {padded(users.prompts)[0].shape[1]}), {arguments.candidates} candidates, "
        f"{(plan.depth_BM > 0).sum(1).mean():.1f} nodes fed (padded to {plan.depth_BM.shape[1]})"
    )


def memory(arguments: argparse.Namespace) -> None:
    for name in ("score", "generate", "transformers-generate", "transformers-score"):
        command = [sys.executable, __file__, "one", "--work", name]
        for key in ("batch", "dtype", "candidates"):
            command += [f"--{key}", str(getattr(arguments, key))]
        subprocess.run(command, check=True)


def one(arguments: argparse.Namespace) -> None:
    """One work in this process, and the most memory that it held."""
    users = some_users(arguments.batch, arguments.candidates)
    side, _, work = arguments.work.rpartition("-")
    if side:
        from ranking_transformers import Theirs  # noqa: PLC0415

        worker: Any = Theirs(FOLDER, arguments.dtype)
        users = users.take(1) if work == "score" else users  # scoring goes user by user
    else:
        worker = Ours(arguments.dtype)
    before = resident()
    getattr(worker, work)(users)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{arguments.work:24} {peak:7,.0f} MiB at most, {peak - before:7,.0f} above the weights")


def resident() -> float:
    """Mebibytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def growth(arguments: argparse.Namespace) -> None:
    ours = Ours(arguments.dtype)
    for count in (10, 50, 100, 200):
        users = some_users(arguments.batch, count)
        arguments.candidates = count
        describe(users, arguments)
        works: dict[str, Callable[[], Any]] = {
            "prefill": partial(ours.prefill, users),
            "score": partial(ours.score, users),
            "generate": partial(ours.generate, users),
        }
        show(medians(works, arguments.repeats), arguments.batch, "prefill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    works = {
        "floor": floor, "prefix": prefix, "compare": compare, "memory": memory, "growth": growth,
        "one": one,
    }  # fmt: skip
    for name in works:
        command = commands.add_parser(name)
        command.add_argument("--batch", type=int, default=1)
        command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument("--candidates", type=int, default=50)
        command.add_argument("--scored", type=int, default=2, help="users of their scoring")
        command.add_argument("--work", help="of `one`")
    arguments = parser.parse_args()
    works[arguments.command](arguments)


if __name__ == "__main__":
    main()
