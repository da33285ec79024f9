from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palr_jax.config import Config
from palr_jax.data import prepare
from palr_jax.data.prepare import Prepared
from palr_jax.data.raw import items_table
from palr_jax.data.split import leave_one_out
from palr_jax.json_types import JsonObject
from palr_jax.ragged import Ragged
from palr_jax.retrieval.config import Model, RetrieverConfig
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.stages import retrieve as retrievers

ITEMS = 60
SMALL: JsonObject = {"dim": 8, "num_heads": 1, "length": 8, "max_epochs": 2, "batch_size": 8}
CONFIG = Config(
    name="x",
    retriever=RetrieverConfig(model="sasrec", candidates=20, **SMALL),
    retriever_presets={"gru4rec": {**SMALL, "dim": 4}},
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    some: tuple[Model, ...] = ("popularity", "item_knn", "gru4rec", "sasrec")
    monkeypatch.setattr(retrievers, "MODELS", {name: MODELS[name] for name in some})
    rng = np.random.default_rng(0)
    rows = [(rng.integers(ITEMS) + np.arange(rng.integers(5, 12))) % ITEMS for _ in range(40)]
    names = np.arange(ITEMS).astype(str)
    run = RunDirectory(tmp_path / "runs" / "x")
    split = leave_one_out(Ragged.from_rows(rows), np.arange(40).astype(str), ITEMS)
    items = items_table(names.tolist(), names.tolist(), [[]] * ITEMS)
    prepare.save(Prepared(split, items), run.data)
    return run


def test_every_retriever_gets_a_row_over_all_users(run: RunDirectory) -> None:
    rows = retrievers.compare(CONFIG, run)
    assert [row["model"] for row in rows] == ["Popularity", "Item-kNN", "GRU4Rec", "SASRec"]
    for row in rows:
        assert row["users"] == 40
        assert 0 <= row["HR@10"] <= row["Recall@20"] <= 1
        assert 0 < row["coverage@10"] <= 1
    assert [row["epochs"] for row in rows] == [0, 0, 2, 2]
    assert rows[1]["HR@10"] > rows[0]["HR@10"]  # who walks round the catalog is no fan of hits


def test_what_is_trained_is_taken_as_it_is(run: RunDirectory) -> None:
    first = retrievers.compare(CONFIG, run)
    written = {path: path.stat().st_mtime_ns for path in run.path.rglob("checkpoints/**/*")}
    assert written
    assert retrievers.compare(CONFIG, run) == first
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("checkpoints/**/*")} == written


def test_other_settings_train_anew(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    retrievers.compare(CONFIG, run)
    presets: dict[Model, JsonObject] = {"gru4rec": {**SMALL, "dim": 4, "max_epochs": 1}}
    rows = retrievers.compare(replace(CONFIG, retriever_presets=presets), run)
    assert [row["epochs"] for row in rows] == [0, 0, 1, 2]
    assert (
        "GRU4Rec: was trained with other settings or data; training starts again"
        in capsys.readouterr().err
    )


def test_recall_of_ties_is_that_of_the_list(run: RunDirectory) -> None:
    """All items are equally popular: ranks are all the same, the list holds some targets."""
    rows = [np.arange(start, start + 3) % ITEMS for start in range(ITEMS)]
    split = leave_one_out(Ragged.from_rows(rows), np.arange(ITEMS).astype(str), ITEMS)
    prepared = replace(prepare.load(run.data), split=split)
    retrievers.propose(CONFIG, run, "popularity", prepared)
    arrays = run.read_candidates("popularity")
    assert len(np.unique(arrays["test_rank"])) == 1
    listed = [split.test_U[user] in arrays["test_items"][user] for user in range(ITEMS)]
    row = retrievers._row(CONFIG, run, "popularity", split)
    assert row["Recall@20"] == pytest.approx(np.mean(listed), abs=1e-6)
    assert 0 < row["Recall@20"] < 1


def test_other_data_train_anew(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare.load(run.data)
    retrievers.propose(CONFIG, run, "sasrec", prepared)
    split = prepared.split
    swapped = replace(split, validation_U=split.test_U, test_U=split.validation_U)
    retrievers.propose(CONFIG, run, "sasrec", replace(prepared, split=swapped))
    assert "with other settings or data; training starts again" in capsys.readouterr().err


def test_other_titles_train_anew_where_titles_are_features(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare.load(run.data)
    config = replace(CONFIG, retriever=replace(CONFIG.retriever, item_features="words"))
    retrievers.propose(config, run, "sasrec", prepared)
    first = run.read_candidates("sasrec")
    retrievers.propose(config, run, "sasrec", prepared)
    assert "training starts again" not in capsys.readouterr().err
    names = prepared.catalog.item_ids.tolist()
    items = items_table(names, [f"{n % 3} {n}" for n in range(ITEMS)], [[]] * ITEMS)
    retrievers.propose(config, run, "sasrec", replace(prepared, items=items))
    assert "with other settings or data; training starts again" in capsys.readouterr().err
    other = run.read_candidates("sasrec")
    assert not np.array_equal(first["test_scores"], other["test_scores"])
