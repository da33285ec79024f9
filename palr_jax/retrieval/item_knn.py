"""Item-kNN: items that share users (Sarwar et al. 2001; Deshpande and Karypis 2004).

Shapes: C items of a chunk.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.io.files import read_arrays, write_arrays
from palr_jax.parallel import processes
from palr_jax.ragged import Ragged
from palr_jax.retrieval.base import ScoringRetriever
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.full_ranking import Scorer

_FILE = "item_knn.npz"
_NEIGHBOURS = 100
_SHRINK = 10.0  # added to the denominator: few common users are weak evidence
_ROWS = 1024  # items per chunk of the neighbour search


class ItemKNN(ScoringRetriever):
    """A score is the sum of cosines of an item with those history items it is a neighbour of.

    Items that neighbour no history item tie at zero.
    """

    def __init__(self, config: RetrieverConfig, num_items: int, seed: int) -> None:
        super().__init__(num_items)
        self._near_II = sp.csr_array((num_items, num_items), dtype=np.float32)

    def fit(self, split: Split, directory: Path) -> None:
        """Finds the nearest items of each item."""
        users, items = split.num_users, self._num_items
        ones_N = np.ones(len(split.train.values_N), np.float32)
        matrix_UI = sp.csr_array(
            (ones_N, split.train.values_N, split.train.offsets_R1), shape=(users, items)
        )
        near_II = _nearest(matrix_UI)
        arrays = {
            "weight_N": near_II.data, "column_N": near_II.indices, "offsets_I1": near_II.indptr
        }  # fmt: skip
        processes.led(lambda: write_arrays(directory / _FILE, **arrays))
        self.load(directory)

    def load(self, directory: Path) -> None:
        """Reads the nearest items."""
        arrays = read_arrays(directory / _FILE)
        found = len(arrays["offsets_I1"]) - 1
        if found != self._num_items:
            raise UserError(
                f"{directory / _FILE} holds {found} items, but the catalog has "
                f"{self._num_items}: delete that folder and run again"
            )
        self._near_II = sp.csr_array(
            (arrays["weight_N"], arrays["column_N"], arrays["offsets_I1"]), shape=(found, found)
        )

    def _scorer(self) -> Scorer:
        def queries(part: Ragged) -> np.ndarray:
            ones_N = np.ones(len(part.values_N), np.float32)
            shape = (len(part), self._num_items)
            history_BI = sp.csr_array((ones_N, part.values_N, part.offsets_R1), shape=shape)
            return np.asarray((history_BI @ self._near_II).toarray(), np.float32)

        return Scorer(queries, np.arange(self._num_items), _columns)


def _nearest(matrix_UI: sp.csr_array) -> sp.csr_array:
    """Shrunken cosines of each item with its nearest neighbours, sparse [I, I]."""
    count_I = np.asarray(matrix_UI.sum(axis=0)).ravel()
    transposed_IU = matrix_UI.T.tocsr()
    blocks = []
    for start in range(0, matrix_UI.shape[1], _ROWS):
        common_RI = (transposed_IU[start : start + _ROWS] @ matrix_UI).tocoo()
        row_N, column_N = common_RI.coords
        cosine_N = common_RI.data / (np.sqrt(count_I[start + row_N] * count_I[column_N]) + _SHRINK)
        keep_N = column_N != start + row_N
        row_N, column_N, cosine_N = row_N[keep_N], column_N[keep_N], cosine_N[keep_N]
        order_N = np.lexsort((column_N, -cosine_N, row_N))
        rank_N = np.arange(len(order_N)) - np.searchsorted(row_N[order_N], row_N[order_N])
        best_N = order_N[rank_N < _NEIGHBOURS]
        entries = (cosine_N[best_N].astype(np.float32), (row_N[best_N], column_N[best_N]))
        blocks.append(sp.coo_array(entries, shape=common_RI.shape))
    return sp.csr_array(sp.vstack(blocks, format="csr"))


def _columns(score_BI: jax.Array, item_C: jax.Array) -> jax.Array:
    """Selects from scores computed per user; padding after the catalog repeats item 0."""
    return jnp.take(score_BI, item_C, axis=1)
