"""Our SASRec against a plain PyTorch SASRec: a training epoch and the full ranking of all users.

    pip install -e '.[bench]'
    palr prepare --config configs/ml-1m.yaml
    python tools/bench/retrieval.py epoch --run runs/ml-1m --length 200 --batch-size 128
    python tools/bench/retrieval.py profile --run runs/ml-1m --length 200 --batch-size 128
    python tools/bench/retrieval.py growth

`epoch` alternates both on the same data, the newest items of every user, and prints medians and
their ratio. Our training predicts all items of a history of any length; the plain version cuts
histories to the length of a row. `profile` breaks down the time of a training step. `growth` ranks
catalogs of ten thousand to a million items, each in a separate process.

Shapes: N positions with a target, S seen items.
"""

import argparse
import functools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.data import prepare
from palr_jax.data.split import Split
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking, loop
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.losses import Loss, cross_entropy
from palr_jax.retrieval.models import MODELS
from palr_jax.retrieval.rows import NEXT_ITEM
from palr_jax.retrieval.step import Rates, RetrieverState, retriever_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("epoch", "profile"):
        command = commands.add_parser(name)
        command.add_argument("--run", type=Path, required=True, help="a run directory with data")
        command.add_argument("--length", type=int, default=200)
        command.add_argument("--batch-size", type=int, default=128)
        command.add_argument("--repeats", type=int, default=3)
    growth = commands.add_parser("growth")
    growth.add_argument("--users", type=int, default=1024)
    growth.add_argument("--items", type=int, help="this size alone, in this process")
    arguments = parser.parse_args()
    if arguments.command == "epoch":
        compare(arguments)
    elif arguments.command == "profile":
        profile(arguments)
    elif arguments.items:
        rank_catalog(arguments.items, arguments.users)
    else:
        for items in (10_000, 100_000, 1_000_000):
            run = [sys.executable, __file__, "growth", "--items", str(items)]
            subprocess.run([*run, "--users", str(arguments.users)], check=True)


def compare(arguments: argparse.Namespace) -> None:
    split = newest(prepare.load(arguments.run / "data").split, arguments.length)
    config = config_of(arguments)
    ours, theirs = ours_of(config, split), theirs_of(config, split)
    print(
        f"{len(split.train.values_N):,} items of {split.num_users:,} users to predict in an epoch"
    )
    for name, here, there in zip(("epoch", "evaluation"), ours, theirs, strict=True):
        seconds: dict[str, list[float]] = {"palr_jax": [], "PyTorch": []}
        for work in (here, there):
            work()  # compiles, or fills caches
        for _ in range(arguments.repeats):
            for label, work in (("palr_jax", here), ("PyTorch", there)):
                start = time.perf_counter()
                work()
                seconds[label].append(time.perf_counter() - start)
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        for label, values in seconds.items():
            spread = f"{min(values):.2f} … {max(values):.2f}"
            print(f"{name:10} {label:9} {medians[label]:8.2f} s   ({spread})")
        print(f"{name:10} ratio     {medians['PyTorch'] / medians['palr_jax']:8.2f}")


def config_of(arguments: argparse.Namespace) -> RetrieverConfig:
    return RetrieverConfig(
        dim=64, num_blocks=2, num_heads=1, length=arguments.length, dropout=0.2,
        batch_size=arguments.batch_size,
    )  # fmt: skip


def profile(arguments: argparse.Namespace) -> None:
    """Microseconds per item of a full batch: a whole step, and its parts in isolation."""
    split, config = prepare.load(arguments.run / "data").split, config_of(arguments)
    retriever: Any = MODELS["sasrec"](config, split.num_items, 0)
    graph, params = retriever._graph, retriever._params
    size, key = config.batch_size, jax.random.key(0)
    rows = NEXT_ITEM.training(split.train, split.num_items, config.length, size, 0, 0)
    rows = jax.tree.map(jnp.asarray, loop.cut(rows, size)[0])
    hidden_ND = jax.random.normal(key, (size * config.length, config.dim))
    target_N = rows.target_RT.reshape(-1)

    def network(params: Any, key: jax.Array | None) -> jax.Array:
        return nnx.merge(graph, params)(rows, key).sum()

    def loss(hidden_ND: jax.Array, item_ID: jax.Array) -> jax.Array:
        return cross_entropy(hidden_ND, item_ID, target_N)

    def step() -> Any:
        state = RetrieverState.initial(params)  # a step takes over the memory of its state
        return retriever_step(
            graph, Loss("cross_entropy", 1), Rates(1e-3, 0.0, 0.0), state, rows, key
        )

    network_slope = jax.jit(jax.grad(network))
    loss_slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for name, work in (
        ("step", step),
        ("network, forward and backward", lambda: network_slope(params, key)),
        ("the same without dropout", lambda: network_slope(params, None)),
        ("softmax over the catalog, both ways", lambda: loss_slope(hidden_ND, params["item_ID"])),
    ):
        jax.block_until_ready(work())
        seconds = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            jax.block_until_ready(work())
            seconds.append(time.perf_counter() - start)
        print(f"{name:36} {1e6 * statistics.median(seconds) / len(target_N):6.1f} µs an item")


def newest(split: Split, length: int) -> Split:
    """The split with only the last `length` items of every training history."""
    item_UT = split.train.last(length, fill=-1)
    lengths_U = np.minimum(split.train.lengths_R, length)
    return replace(split, train=Ragged.from_lengths(item_UT[item_UT >= 0], lengths_U))


def ours_of(config: RetrieverConfig, split: Split) -> tuple[Callable[[], None], Callable[[], None]]:
    retriever: Any = MODELS["sasrec"](config, split.num_items, 0)
    state = RetrieverState.initial(retriever._params)
    step = functools.partial(
        retriever_step, retriever._graph, Loss("cross_entropy", 1), Rates(1e-3, 0.0, 0.0)
    )
    histories, target_U = split.histories("validation"), split.targets("validation")

    def epoch() -> None:
        nonlocal state
        rows = NEXT_ITEM.training(
            split.train, split.num_items, config.length, config.batch_size, 0, 0
        )
        for index, batch in enumerate(loop.cut(rows, config.batch_size)):
            state, loss = step(state, batch, jax.random.key(index))
        float(loss)

    def evaluate() -> None:
        retriever.target_ranks(histories, target_U)

    return epoch, evaluate


def theirs_of(
    config: RetrieverConfig, split: Split
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Right-aligned rows, one a user; the loss at positions with a target.

    The first item of a history has nothing that it could be predicted from, and is no target.
    """
    import torch  # noqa: PLC0415  # only this benchmark needs it
    from torch import nn  # noqa: PLC0415

    items, dim, length = split.num_items, config.dim, config.length

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.attention = nn.MultiheadAttention(dim, config.num_heads, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, x_BTD: torch.Tensor, hidden_TT: torch.Tensor) -> torch.Tensor:
            y_BTD = self.norm_1(x_BTD)
            y_BTD, _ = self.attention(y_BTD, y_BTD, y_BTD, attn_mask=hidden_TT, need_weights=False)
            x_BTD = x_BTD + self.dropout(y_BTD)
            return x_BTD + self.dropout(self.mlp(self.norm_2(x_BTD)))

    class SASRec(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(items + 1, dim, padding_idx=items)
            self.positions = nn.Embedding(length, dim)
            self.blocks = nn.ModuleList(Block() for _ in range(config.num_blocks))
            self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(config.dropout)

        def forward(self, item_BT: torch.Tensor) -> torch.Tensor:
            position_T = torch.arange(item_BT.shape[1])
            hidden_TT = position_T[:, None] < position_T
            x_BTD = self.dropout(self.items(item_BT) + self.positions(position_T))
            for block in self.blocks:
                x_BTD = block(x_BTD, hidden_TT)
            return self.norm(x_BTD)

    torch.manual_seed(0)
    model = SASRec()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    recent_UT = torch.from_numpy(split.train.last(length + 1, fill=items)).long()
    latest_UT = torch.from_numpy(split.train.last(length, fill=items)).long()
    target_U = torch.from_numpy(split.targets("validation")).long()
    seen_US = torch.from_numpy(
        split.train.last(int(split.train.lengths_R.max()), fill=items)
    ).long()

    def epoch() -> None:
        model.train()
        for users_B in torch.randperm(split.num_users).split(config.batch_size):
            row_BT = recent_UT[users_B]
            hidden_BTD, target_BT = model(row_BT[:, :-1]), row_BT[:, 1:]
            used_BT = target_BT != items
            logits_NI = hidden_BTD[used_BT] @ model.items.weight[:items].T
            loss = nn.functional.cross_entropy(logits_NI, target_BT[used_BT])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        ranks = []
        for users_B in torch.arange(split.num_users).split(256):
            score_BI = model(latest_UT[users_B])[:, -1] @ model.items.weight.T
            score_BI.scatter_(1, seen_US[users_B], -torch.inf)
            wanted_B1 = score_BI.gather(1, target_U[users_B][:, None])
            ranks.append((score_BI > wanted_B1).sum(1))
        torch.cat(ranks).float().mean().item()

    return epoch, evaluate


def rank_catalog(items: int, users: int) -> None:
    rng = np.random.default_rng(0)
    # Drawn as float32: a temporary float64 array would hide the memory that ranking adds.
    item_ID = rng.standard_normal((items, 64), np.float32)
    user_UD = rng.standard_normal((users, 64), np.float32)
    histories = Ragged.from_lengths(rng.integers(0, items, users * 50), np.full(users, 50))
    target_U = rng.integers(0, items, users)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scorer = full_ranking.Scorer(
        lambda part: user_UD[: len(part)], item_ID, full_ranking.inner_product
    )
    for name, work in (
        ("ranks", lambda: full_ranking.ranks(scorer, histories, target_U, items)),
        ("top 50", lambda: full_ranking.recommend(scorer, histories, 50, items)),
    ):
        work()
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"{items:9,} items  {name:7} {1e3 * seconds / users:8.2f} ms a user, "
            f"{peak:6.0f} MiB above the data"
        )


if __name__ == "__main__":
    main()
