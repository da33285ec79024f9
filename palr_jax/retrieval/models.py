"""The retrievers by name."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.parallel import processes
from palr_jax.retrieval.bert4rec import BERT4Rec
from palr_jax.retrieval.bpr_mf import BPRMF
from palr_jax.retrieval.caser import Caser
from palr_jax.retrieval.config import SEQUENTIAL, Model, RetrieverConfig
from palr_jax.retrieval.gru4rec import GRU4Rec
from palr_jax.retrieval.hstu import HSTU
from palr_jax.retrieval.interface import Retriever
from palr_jax.retrieval.item_knn import ItemKNN
from palr_jax.retrieval.lightgcn import LightGCN
from palr_jax.retrieval.ncf import NCF
from palr_jax.retrieval.pairwise import Pairwise
from palr_jax.retrieval.popularity import Popularity
from palr_jax.retrieval.rows import CLOZE, NEXT_ITEM
from palr_jax.retrieval.sasrec import SASRec
from palr_jax.retrieval.sequential import Sequential
from palr_jax.retrieval.sharded import check_devices

MODELS: dict[Model, Callable[[RetrieverConfig, int, int], Retriever]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "bpr_mf": functools.partial(Pairwise, BPRMF),
    "ncf": functools.partial(Pairwise, NCF),
    "lightgcn": functools.partial(Pairwise, LightGCN),
    "gru4rec": functools.partial(Sequential, GRU4Rec, NEXT_ITEM),
    "caser": functools.partial(Sequential, Caser, NEXT_ITEM),
    "bert4rec": functools.partial(Sequential, BERT4Rec, CLOZE),
    "sasrec": functools.partial(Sequential, SASRec, NEXT_ITEM),
    "hstu": functools.partial(Sequential, HSTU, NEXT_ITEM),
}
"""Model name → callable of (config, number of items, seed)."""

ROW_NAMES: dict[Model, str] = {
    "popularity": "Popularity",
    "item_knn": "Item-kNN",
    "bpr_mf": "BPR-MF",
    "ncf": "NCF",
    "lightgcn": "LightGCN",
    "gru4rec": "GRU4Rec",
    "caser": "Caser",
    "bert4rec": "BERT4Rec",
    "sasrec": "SASRec",
    "hstu": "HSTU",
}
"""The models' names in tables."""

# Models without training, which each process computes alike.
_UNTRAINED: tuple[Model, ...] = ("popularity", "item_knn")


def check_processes(config: RetrieverConfig) -> None:
    """Checks that several processes, if there are any, can train a retriever together.

    Raises:
        UserError: the model is trained in one process, or they have other devices.
    """
    if not processes.are_many() or config.model in _UNTRAINED:
        return
    if config.model not in SEQUENTIAL:
        raise UserError(
            f"retriever.model {config.model} is trained in one process: run palr retrieve on one "
            f"machine, or choose one of {', '.join(SEQUENTIAL)}"
        )
    check_devices(config)


def fitted(
    config: RetrieverConfig,
    split: Split,
    seed: int,
    directory: Path,
    feature_IR: np.ndarray | None = None,
) -> Retriever:
    """A retriever, trained on `split` or loaded from `directory` if it is trained.

    With several processes, all must call this and use the result together.

    Args:
        config: which retriever, and its settings.
        split: the data.
        seed: of the training.
        directory: see `Retriever.fit`.
        feature_IR: features of the items, [I, R]; required if `config.item_features` is set.

    Raises:
        UserError: training failed, `directory` was made with other settings or data, or as
            `check_processes`.
    """
    check_processes(config)
    retriever = MODELS[config.model](config, split.num_items, seed)
    if feature_IR is not None:
        assert isinstance(retriever, Sequential)  # the config allows features for these alone
        retriever.use_features(feature_IR)
    retriever.fit(split, directory)
    return retriever
