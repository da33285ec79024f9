"""A small table of ratings, a table of items and a config."""

from pathlib import Path

import numpy as np
import yaml

from palr_jax.json_types import JsonObject

USERS, ITEMS = 30, 80
CONFIG: JsonObject = {
    "name": "tiny",
    "data": {"source": "table", "interactions": "i.csv", "items": "t.csv", "min_count": 3},
    "retriever": {"candidates": 20, "dim": 8, "num_heads": 1, "num_blocks": 1, "length": 8,
                  "max_epochs": 2, "batch_size": 8},
    "instruct": {"history": 5, "label": 4, "candidates": 20, "title_tokens": 24, "length": 400},
    "ranker": {"size": {"dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
                        "ffn_dim": 24, "vocab_size": 512}},
    "finetune": {"steps": 4, "batch_size": 2, "length": 400, "label_length": 128,
                 "save_every": 2, "log_every": 1},
    "evaluate": {"batch_size": 16, "bootstrap": 200},
}  # fmt: skip


def write_world(folder: Path) -> None:
    """A table of ratings, a table of items and a config."""
    rng = np.random.default_rng(0)
    kinds = ["Action", "Drama", "War"]
    items = [f'{i},"Story, {i} ({1950 + i})",{kinds[i % 3]}|{kinds[i % 2]}' for i in range(ITEMS)]
    (folder / "t.csv").write_text("\n".join(["item,title,categories", *items]) + "\n")
    rows = []
    for user in range(USERS):
        start = rng.integers(ITEMS)
        taken = (start + rng.permutation(30)[: rng.integers(6, 20)]) % ITEMS
        rows += [f"u{user},{item},{time}" for time, item in enumerate(taken)]
    (folder / "i.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
