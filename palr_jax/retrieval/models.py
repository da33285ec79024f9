"""The retrievers by name."""

import functools
from collections.abc import Callable

from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.interface import Retriever
from palr_jax.retrieval.popularity import Popularity
from palr_jax.retrieval.sasrec import SASRec
from palr_jax.retrieval.sequential import Sequential

MODELS: dict[str, Callable[[RetrieverConfig, int, int], Retriever]] = {
    "popularity": Popularity,
    "sasrec": functools.partial(Sequential, SASRec),
}
"""Each is called with the settings, the number of items and the seed."""
