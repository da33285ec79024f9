"""Our SASRec against RecBole's: time to the same validation accuracy, and the full ranking.

RecBole 1.2 requires an older NumPy, so it needs a separate environment:

    python -m venv recbole
    recbole/bin/pip install 'recbole==1.2.1' 'numpy<2' 'pandas<3' 'setuptools<81'
    palr prepare --config configs/beauty.yaml
    python tools/bench/recbole.py --run runs/beauty --python recbole/bin/python --epochs 1

Both have width 64, two blocks of one head, rows of 50 and the softmax over the whole catalog. A
RecBole epoch does other work (a row for every prefix of a history), so the comparison is the time
from the first step to the validation NDCG@10 that RecBole reaches after its epochs. RecBole does
not mask seen items in validation; we mask them, which can only help.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from palr_jax.data import prepare
from palr_jax.data.split import Split
from palr_jax.evaluation.metrics import ndcg
from palr_jax.retrieval import loop
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.losses import Loss
from palr_jax.retrieval.models import MODELS
from palr_jax.retrieval.rows import NEXT_ITEM
from palr_jax.retrieval.step import Rates, RetrieverState, retriever_step

_LENGTH = 50
_EPOCHS_AT_MOST = 100

# Runs in RecBole's environment: argv is the folder of the data, its name, and the epochs.
_THEIRS = """
import json, sys, time
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
folder, name, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = Config(model="SASRec", dataset=name, config_dict={
    "data_path": folder, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    "metrics": ["NDCG"], "topk": [10], "valid_metric": "NDCG@10", "loss_type": "CE",
    "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 50, "hidden_size": 64,
    "inner_size": 64, "n_layers": 2, "n_heads": 1, "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5, "train_batch_size": 2048, "eval_batch_size": 4096,
    "learning_rate": 1e-3, "show_progress": False, "state": "ERROR", "use_gpu": False,
})
init_seed(0, True)
dataset = create_dataset(config)
train, valid, _ = data_preparation(config, dataset)
model = get_model("SASRec")(config, train.dataset)
trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
trained = 0.0
for epoch in range(epochs):
    start = time.perf_counter()
    trainer._train_epoch(train, epoch)
    trained += time.perf_counter() - start
    start = time.perf_counter()
    score = trainer._valid_epoch(valid)[0]
    print(json.dumps({"epoch": epoch + 1, "training": trained, "ndcg": float(score),
                      "evaluation": time.perf_counter() - start}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run directory with data")
    parser.add_argument("--python", type=Path, required=True, help="of RecBole's environment")
    parser.add_argument("--epochs", type=int, default=1, help="of RecBole")
    arguments = parser.parse_args()
    split = prepare.load(arguments.run / "data").split
    theirs = run_theirs(split, arguments.python, arguments.epochs)
    wanted = max(line["ndcg"] for line in theirs)
    for line in theirs:
        show("RecBole", line)
    ours = run_ours(split, wanted)
    for line in ours:
        show("palr_jax", line)
    needed = next(line["training"] for line in theirs if line["ndcg"] == wanted)
    if ours[-1]["ndcg"] < wanted:
        sys.exit(f"palr_jax did not reach {wanted:.4f} in {_EPOCHS_AT_MOST} epochs")
    compare(f"time to validation NDCG@10 {wanted:.4f}", needed, ours[-1]["training"])
    medians = [statistics.median(line["evaluation"] for line in lines) for lines in (theirs, ours)]
    compare("evaluation", *medians)


def compare(what: str, theirs: float, ours: float) -> None:
    print(f"{what}: RecBole {theirs:.2f} s, palr_jax {ours:.2f} s, ratio {theirs / ours:.1f}")


def show(name: str, line: dict[str, float]) -> None:
    print(
        f"{name:9} epoch {line['epoch']:3.0f}: trained {line['training']:6.1f} s, validation "
        f"NDCG@10 {line['ndcg']:.4f} in {line['evaluation']:.2f} s",
        flush=True,
    )


def run_theirs(split: Split, python: Path, epochs: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        write_interactions(split, Path(folder) / "data" / "data.inter")
        command = [str(python.absolute()), "-c", _THEIRS, folder, "data", str(epochs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def write_interactions(split: Split, path: Path) -> None:
    """All interactions in RecBole's format; its leave-one-out split gives the same parts."""
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(split.histories("all")):
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(items))


def run_ours(split: Split, wanted: float) -> list[dict[str, float]]:
    config = RetrieverConfig(
        dim=64, num_blocks=2, num_heads=1, length=_LENGTH, dropout=0.5, batch_size=64,
    )  # fmt: skip
    retriever: Any = MODELS["sasrec"](config, split.num_items, 0)
    state = RetrieverState.initial(retriever._params)
    rates = Rates(learning_rate=2e-3, weight_decay=0.1, averaging=0.99)
    step = functools.partial(retriever_step, retriever._graph, Loss("cross_entropy", 1), rates)
    histories, target_U = split.histories("validation"), split.targets("validation")
    lines: list[dict[str, float]] = []
    trained = 0.0
    while len(lines) < _EPOCHS_AT_MOST and (not lines or lines[-1]["ndcg"] < wanted):
        epoch = len(lines)
        start = time.perf_counter()
        rows = NEXT_ITEM.training(
            split.train, split.num_items, _LENGTH, config.batch_size, 0, epoch
        )
        for index, batch in enumerate(loop.cut(rows, config.batch_size)):
            key = jax.random.fold_in(jax.random.key(epoch), index)
            state, loss = step(state, batch, key)
        float(loss)
        trained += time.perf_counter() - start
        start = time.perf_counter()
        retriever._params = state.average
        score = float(ndcg(retriever.target_ranks(histories, target_U), 10).mean())
        lines.append(
            {"epoch": epoch + 1, "training": trained, "ndcg": score,
             "evaluation": time.perf_counter() - start}
        )  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
