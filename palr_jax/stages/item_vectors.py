"""Vectors of titles, which a run makes once and keeps.

Shapes: I items, R width of an item vector.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from palr_jax.data.catalog import Catalog
from palr_jax.io.files import read_arrays, write_arrays
from palr_jax.parallel import processes
from palr_jax.ranking import title_vectors
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.run_directory import RunDirectory


def word_vectors(run: RunDirectory, catalog: Catalog) -> np.ndarray:
    """Vectors of the words of each title, [I, R].

    Raises:
        UserError: the titles have too few words, or the file of the vectors is damaged.
    """
    file = run.title_vectors("words", catalog.titles)
    return _kept(file, partial(title_vectors.word_vectors, catalog))


def language_model_vectors(run: RunDirectory, catalog: Catalog, weights: str) -> np.ndarray:
    """Vectors of each title by a language model, [I, R].

    Raises:
        UserError: the weights cannot be read, or the file of the vectors is damaged.
    """
    file = run.title_vectors(weights, catalog.titles)
    return _kept(file, partial(title_vectors.language_model_vectors, catalog, weights))


def retriever_features(
    config: RetrieverConfig, run: RunDirectory, catalog: Catalog
) -> np.ndarray | None:
    """The features of the items that a retriever is configured with, [I, R], or None."""
    return None if config.item_features == "none" else word_vectors(run, catalog)


def _kept(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Reads the vectors from a file, and makes the file first if it is missing.

    Of several processes, the leader makes it, and the others wait.

    They are made once per run: a language model takes long, and singular vectors of equal values
    come out in another basis each time, which would change the inputs of a resumed training.
    """

    def make_file() -> None:
        if not file.exists():
            write_arrays(file, vectors_IR=make())

    processes.led(make_file)
    return read_arrays(file)["vectors_IR"]
