from pathlib import Path

import numpy as np

from palr_jax.data.split import leave_one_out
from palr_jax.ragged import Ragged
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.popularity import Popularity


def test_counts_training_items_alone(tmp_path: Path) -> None:
    rows = [[0, 1, 2, 3], [1, 0, 3, 3], [1, 4, 3, 3]]  # the last two of each are held out
    split = leave_one_out(Ragged.from_rows(rows), np.array(["a", "b", "c"]), 6)
    popularity = Popularity(RetrieverConfig(model="popularity"), 6, seed=0)
    popularity.fit(split, tmp_path)
    assert popularity.scores(Ragged.from_rows([[], [1]])).tolist() == [[2, 3, 0, 0, 1, 0]] * 2
    top = popularity.recommend(Ragged.from_rows([[], [1]]), 3)
    assert top.item_UK.tolist() == [[1, 0, 4], [0, 4, 2]]
    ranked_U = popularity.target_ranks(Ragged.from_rows([[], [1]]), np.array([5, 4]))
    assert ranked_U.tolist() == [5, 2]  # 5 ties with 2 and 3 after 1, 0 and 4
