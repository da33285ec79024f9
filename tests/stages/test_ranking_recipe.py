"""A whole run of the recipe that learns from the retriever's candidates."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

from palr_jax import Recommender
from palr_jax.config import load_config
from palr_jax.data import prepare as preparing
from palr_jax.data.split import Split
from palr_jax.errors import UserError
from palr_jax.json_types import JsonObject
from palr_jax.ragged import Ragged
from palr_jax.ranking.ranker import log_prior
from palr_jax.retrieval.interface import TopK
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.stages import proposals
from tests.locations import ROOT
from tests.stages.test_run import palr
from tests.world import CONFIG, write_world

RECIPE: JsonObject = {
    "instruct": {"user_share": 1.0, "prompt": "history", "held_out": "time", "moments": 3},
    "ranker": {
        "variants": ["PALR_v2"], "prior": "retriever", "item_embeddings": ["retriever", "words"],
    },
    "finetune": {
        "objective": "candidates", "steps": 12, "moments": 8, "validation_share": 0.2,
        "validate_every": 3, "patience": 2, "learning_rate": 0.01, "prior_dropout": 0.3,
        "text_loss": 0.05,
    },
    "evaluate": {"controls": True},
}  # fmt: skip
NAMES = [
    "Popularity", "SASRec", "SASRec + popularity", "PALR_v2", "PALR_v2 with prior",
    "PALR_v2 + SASRec",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml and its finished run, runs/tiny."""
    folder = tmp_path_factory.mktemp("recipe")
    write_world(folder)
    config = json.loads(json.dumps(CONFIG))
    for section, values in RECIPE.items():
        config[section] = {**config.get(section, {}), **values}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert palr("run", "--config", "recipe.yaml") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(finished, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def test_every_row_and_control_is_there(finished: Path) -> None:
    results = json.loads((finished / "runs/tiny/results.json").read_text())
    assert [row["model"] for row in results["rows"]] == NAMES
    for row in results["rows"][3:]:
        assert set(row["ci95"]) == {"SASRec", "SASRec + popularity"}
    names = [row["control"] for row in results["controls"]]
    assert names == [
        "PALR_v2 as it is", "random order", "prior alone", "histories shuffled", "LLaMA silent",
        "titles exchanged",
    ]  # fmt: skip
    rows = {row["model"]: row["NDCG@10"] for row in results["rows"]}
    controls = {row["control"]: row["NDCG@10"] for row in results["controls"]}
    assert controls["PALR_v2 as it is"] == rows["PALR_v2 with prior"]
    groups = results["groups"]
    assert groups["models"] == ["SASRec + popularity", *NAMES[-2:]]
    assert list(groups["moves"]["models"]) == groups["models"]
    assert groups["reliability"]["model"] == "PALR_v2 with prior"
    page = (finished / "runs/tiny/report.html").read_text()
    assert "titles exchanged" in page
    assert "NDCG@10 − SASRec + popularity, 95%" in page


def test_the_checkpoint_with_the_lowest_validation_loss_ranks(finished: Path) -> None:
    run = finished / "runs/tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    losses = {line["step"]: line["validation loss"] for line in lines if "validation loss" in line}
    chosen = json.loads((run / "ranker/PALR_v2.json").read_text())
    assert chosen["step"] == min(losses, key=losses.__getitem__)
    assert chosen["validation loss"] == pytest.approx(min(losses.values()))
    assert Recommender.load(run).step == chosen["step"]


def test_a_run_that_was_stopped_tunes_the_same_ranker(here: Path) -> None:
    parameters = [np.asarray(x) for x in params_of(here / "runs/tiny")]
    steps = here / "runs/tiny/ranker/PALR_v2"
    kept = min(int(step.name) for step in steps.iterdir() if step.name.isdigit())
    for step in steps.iterdir():
        if step.name.isdigit() and int(step.name) > kept:
            shutil.rmtree(step)
    (here / "runs/tiny/ranker/PALR_v2.json").unlink()
    stages = here / "runs/tiny/stages.json"
    noted = json.loads(stages.read_text())
    noted["finetune"]["done"] = False
    stages.write_text(json.dumps(noted))
    assert palr("finetune", "--config", "recipe.yaml") == 0
    for one, two in zip(parameters, params_of(here / "runs/tiny"), strict=True):
        np.testing.assert_array_equal(one, two)


def params_of(run: Path) -> list[jax.Array]:
    return jax.tree.leaves(nnx.state(Recommender.load(run).ranker.model))


def test_recommendations_use_prior_and_popularity_and_new_items_need_neither(
    finished: Path,
) -> None:
    recommender = Recommender.load(finished / "runs/tiny")
    titles = list(recommender.catalog.titles)
    (slate,) = recommender.recommend([titles[:4]], k=5, explain=True)
    assert len({item.title for item in slate}) == 5
    assert all(item.explanation is not None for item in slate)
    more = recommender.with_items(["Story of a new one"])
    ranked = more.rank(titles[:4], ["Story of a new one", *titles[20:24]])
    assert np.exp([logp for _, logp in ranked]).sum() == pytest.approx(1, abs=1e-4)


def test_a_prior_of_unknown_items_is_the_mean_of_the_known_ones() -> None:
    candidates_UC = np.array([[3, 4, 90, -1]])
    prior_UC = log_prior(candidates_UC, np.array([[2.0, 0.0, -np.inf, -np.inf]]))
    assert np.exp(prior_UC[0, :3]).sum() == pytest.approx(1)
    assert prior_UC[0, 2] == pytest.approx(prior_UC[0, :2].mean())
    assert not log_prior(candidates_UC, None).any()


def test_retrievers_of_moments_never_see_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = MODELS["sasrec"]

    class Spy:
        def __init__(self, *arguments: Any) -> None:
            self._retriever = real(*arguments)

        def fit(self, split: Split, directory: Path) -> None:
            seen.append(split)
            self._retriever.fit(split, directory)

        def recommend(self, histories: Ragged, k: int) -> TopK:
            return self._retriever.recommend(histories, k)

    monkeypatch.setitem(MODELS, "sasrec", Spy)
    config = load_config(Path("recipe.yaml"), {"instruct.moments": "2"})
    run = RunDirectory(here / "runs/tiny")
    prepared = preparing.load(run.data)
    split = prepared.split
    users = np.arange(split.num_users)
    retrieved = proposals.propose_moments(config, run, prepared, users).retrieved
    (trained_on,) = seen
    by_id = {user: row for row, user in enumerate(trained_on.user_ids)}
    for user in users:
        items, moments = split.train[user].tolist(), retrieved.moments[user]
        assert len(moments) == min(2, len(items) // 2)
        row = by_id[split.user_ids[user]]
        assert trained_on.train[row].tolist() == items[: len(items) - len(moments)]
        assert moments.tolist() == list(range(len(items) - len(moments), len(items)))

    # Each of three parts is new to its own retriever, and proposals go to their own moments.
    seen.clear()
    instruct = replace(config.instruct, held_out="users", folds=3, user_share=1.0)
    ranker = replace(config.ranker, item_embeddings=("words",))
    folded = replace(config, instruct=instruct, ranker=ranker)
    retrieved = proposals.propose_moments(folded, run, prepared, users).retrieved
    trained = [set(part.user_ids.tolist()) for part in seen]
    everyone = set(split.user_ids[split.train.lengths_R >= 2].tolist())
    assert len(seen) == 3
    assert set.union(*[everyone - part for part in trained]) == everyone
    assert sum(len(everyone - part) for part in trained) == len(everyone)
    for number, user in enumerate(np.repeat(users, retrieved.moments.lengths_R)):
        known = split.train[user][: retrieved.moments.values_N[number]]
        assert not set(known.tolist()) & set(retrieved.items_PK[number].tolist())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("finetune.objective", "tokens", "learned by finetune.objective candidates"),
        ("evaluate.decoding", "generate", "set score"),
        ("evaluate.shuffles", "2", "lists no candidates"),
        ("finetune.moments", "2", "must be at least instruct.moments"),
        ("retriever.model", "popularity", "popularity has no item vectors"),
        ("instruct.held_out", "users", "lower user_share below 1"),
        ("ranker.item_embeddings", "[language_model]", "name it in title_weights"),
    ],
)
def test_what_does_not_go_together_is_refused(
    here: Path, key: str, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_config(Path("recipe.yaml"), {key: value})


def test_a_sample_of_users_is_the_same_in_every_row(here: Path) -> None:
    assert palr("evaluate", "--config", "recipe.yaml", "--evaluate.users", "11") == 0
    rows = json.loads(Path("runs/tiny/results.json").read_text())["rows"]
    assert {row["users"] for row in rows} == {11}


def test_an_export_says_what_stays_behind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert palr("export", "--run", "runs/tiny", "--to", "merged") == 0
    assert "its prior and item vectors are not exported" in capsys.readouterr().out


def test_an_ablation_row_trains_the_ranker_alone(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = "fewer steps, user's choice"  # a name of a run holds neither comma nor apostrophe
    (here / "rows.yaml").write_text(f"{row}: {{finetune.steps: 3, evaluate.controls: false}}\n")
    command = [sys.executable, str(ROOT / "tools/study.py"), "runs/tiny", "rows.yaml"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    table, log = capfd.readouterr()
    assert "retrieve: done before, skipped" in log
    assert "candidates to learn from" not in log  # what trains their retriever says so
    cells = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert [line[0].strip() for line in cells] == ["row", "---", "as configured", row]
    decisions = [int(line[2]) for line in cells[2:]]
    assert 0 < decisions[1] < decisions[0]
    results = here / "runs/tiny--fewer-steps-user-s-choice/results.json"
    before = results.stat().st_mtime_ns
    against = [*command, "--against", "as configured", "--page", "study.html"]
    subprocess.run(against, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert results.stat().st_mtime_ns == before
    table, _ = capfd.readouterr()
    cells = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert cells[0][-1].strip() == "fused − as configured"
    users = len(np.load(here / "runs/tiny/slates.npz")["users"])
    assert cells[2][-1].strip() == f"+0.0000 … +0.0000 ({users} users)"
    # A picture with two marks for each row, and the rows again in each of three groupings.
    page = (here / "study.html").read_text()
    assert page.count("class='mark") == 2 + 2 * 2
    assert page.count("fewer steps") == 1 + 3


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("wrong: {finetune.stepz: 3}", "did you mean --finetune.steps?"),
        ("{no prior: {}, no-prior: {}}", "rows 'no prior' and 'no-prior' would share a folder"),
    ],
)
def test_a_wrong_row_is_one_line(here: Path, rows: str, complaint: str) -> None:
    (here / "rows.yaml").write_text(rows)
    command = [sys.executable, str(ROOT / "tools/study.py"), "runs/tiny", "rows.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_an_order_of_candidates_that_training_or_ranking_would_not_keep_is_refused(
    here: Path,
) -> None:
    order = {"instruct.prompt": "candidates", "instruct.candidate_order": "ranks"}
    load_config(Path("recipe.yaml"), order)
    with pytest.raises(UserError, match=r"set it to 0, or instruct\.candidate_order shuffled"):
        load_config(Path("recipe.yaml"), order | {"evaluate.shuffles": "2"})
    plain = {"ranker.prior": "none", "ranker.item_embeddings": "[]"}
    with pytest.raises(UserError, match=r"set finetune\.objective candidates"):
        load_config(Path("recipe.yaml"), order | plain | {"finetune.objective": "tokens"})


def test_letters_go_with_a_list_of_few_candidates(here: Path) -> None:
    listed = {"instruct.prompt": "candidates", "instruct.answer": "letter"}
    load_config(Path("recipe.yaml"), listed)
    with pytest.raises(UserError, match=r"instruct\.answer letter: set instruct\.prompt cand"):
        load_config(Path("recipe.yaml"), {"instruct.answer": "letter"})
    with pytest.raises(UserError, match=r"set ranker\.variants \[PALR_v2\], ranker\.reads choices"):
        load_config(
            Path("recipe.yaml"),
            listed | {"ranker.reads": "titles", "ranker.variants": "[PALR_v1, PALR_v2]"},
        )
    with pytest.raises(UserError, match=r"lower retriever\.candidates \(60\)"):
        load_config(Path("recipe.yaml"), listed | {"retriever.candidates": "60"})
