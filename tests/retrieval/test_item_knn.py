from pathlib import Path

import numpy as np
import pytest

from palr_jax.data.split import leave_one_out
from palr_jax.ragged import Ragged
from palr_jax.retrieval import item_knn
from palr_jax.retrieval.config import RetrieverConfig
from palr_jax.retrieval.item_knn import ItemKNN

ITEMS = 14


def test_scores_are_sums_of_shrunken_cosines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_knn, "_NEIGHBOURS", 4)
    monkeypatch.setattr(item_knn, "_ROWS", 5)  # several blocks
    rng = np.random.default_rng(0)
    rows = [rng.permutation(ITEMS)[: rng.integers(3, 9)] for _ in range(30)]
    split = leave_one_out(Ragged.from_rows(rows), np.arange(30).astype(str), ITEMS)
    model = ItemKNN(RetrieverConfig(model="item_knn"), ITEMS, seed=0)
    model.fit(split, tmp_path)

    has_UI = np.zeros((30, ITEMS))
    for user in range(30):
        has_UI[user, split.train[user]] = 1
    count_I = has_UI.sum(0)
    near_II = (has_UI.T @ has_UI) / (np.sqrt(np.outer(count_I, count_I)) + 10)
    np.fill_diagonal(near_II, 0)
    for item in range(ITEMS):
        best = sorted(range(ITEMS), key=lambda other: (-near_II[item, other], other))[:4]
        near_II[item, [other for other in range(ITEMS) if other not in best]] = 0
    histories = Ragged.from_rows([[1, 2, 3], [], [13]])
    expected_UI = [near_II[histories[user]].sum(0) for user in range(3)]
    np.testing.assert_allclose(model.scores(histories), expected_UI, atol=1e-6)
