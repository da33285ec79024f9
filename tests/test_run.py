"""The whole of PALR on a small table, through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from palr_jax import Recommender, comparison
from palr_jax.cli import main
from palr_jax.data import prepare
from palr_jax.run_directory import VERSION
from tests.world import CONFIG

NAMES = ["Popularity", "SASRec", "SASRec + popularity", "PALR_v1", "PALR_v2", "PALR_v2 + SASRec"]


def palr(*arguments: str) -> int:
    return main(list(arguments))


def rows_of(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())["rows"]


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, to change."""
    shutil.copytree(world, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def test_results_have_every_row_over_all_users(world: Path) -> None:
    rows = rows_of(world / "runs/tiny")
    users = len(prepare.load(world / "runs/tiny/data").split.user_ids)
    assert [row["model"] for row in rows] == NAMES
    assert {row["users"] for row in rows} == {users}
    for row in rows:
        assert 0 <= row["HR@1"] <= row["HR@5"] <= row["HR@10"] <= 1
        assert row["NDCG@5"] <= row["NDCG@10"]
        if "PALR" in row["model"]:
            for other in rows[1:3]:
                low, high = row["ci95"][other["model"]]["NDCG@10"]
                assert low <= row["NDCG@10"] - other["NDCG@10"] <= high


def test_every_slate_is_ten_distinct_unseen_items(world: Path) -> None:
    split = prepare.load(world / "runs/tiny/data").split
    found = np.load(world / "runs/tiny/retriever/sasrec/candidates.npz")["test_items"]
    slates = dict(np.load(world / "runs/tiny/slates.npz"))
    assert set(slates) == {"users", *NAMES[3:]}
    users = slates.pop("users")
    np.testing.assert_array_equal(users, np.arange(split.num_users))
    for name, slate_UK in slates.items():
        for user, slate in enumerate(slate_UK):
            seen = {*split.train[user], split.validation_U[user]}
            assert len(set(slate)) == 10
            assert not set(slate) & seen
            if name != "PALR_v1":
                assert set(slate) <= set(found[user])


def test_the_report_is_one_file_with_the_table_and_examples(world: Path) -> None:
    text = (world / "runs/tiny/report.html").read_text()
    for name in NAMES:
        assert f"<td>{name}</td>" in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert text.count("data:image/svg+xml") == 2
    assert "The candidate movies are:" in text
    assert "label tokens" in text
    assert "Recommendations:\n«&quot;Story, " in text
    assert "&quot;Story, " in text


def test_a_second_run_does_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.rglob("runs/tiny/**/*.npz")}
    assert palr("run", "--config", "tiny.yaml") == 0
    after = {path: path.stat().st_mtime_ns for path in here.rglob("runs/tiny/**/*.npz")}
    assert before == after
    printed = capsys.readouterr()
    assert printed.err.count("done before, skipped") == 5
    assert "PALR_v2 + SASRec" in printed.out


def test_a_change_of_the_ranker_runs_its_stages_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert palr("run", "--config", "tiny.yaml", "--finetune.steps", "3") == 0
    error = capsys.readouterr().err
    for stage in ("prepare", "retrieve", "profile"):
        assert f"{stage}: done before, skipped" in error
    assert "finetune: done in" in error
    assert "evaluate: done in" in error
    metrics = [
        json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in metrics] == [1, 2, 3] * 2


def test_a_run_from_scratch_gives_equal_rows(here: Path) -> None:
    assert palr("run", "--config", "tiny.yaml", "--name", "again") == 0
    assert rows_of(Path("runs/again")) == rows_of(Path("runs/tiny"))


def test_lora_and_generate_run_through(here: Path) -> None:
    options = ["--ranker.lora", "{rank: 2, targets: [q, v]}", "--evaluate.decoding", "generate"]
    assert palr("run", "--config", "tiny.yaml", *options) == 0
    assert [row["model"] for row in rows_of(Path("runs/tiny"))] == NAMES


def test_a_killed_run_goes_on_and_ends_the_same(here: Path) -> None:
    palr_command = Path(sys.executable).with_name("palr")
    command = [palr_command, "run", "--config", "tiny.yaml", "--name", "k"]
    for wanted in ("runs/k/retriever/sasrec", "runs/k/ranker/PALR_v1/2", "runs/k/ranker/PALR_v2"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not Path(wanted).exists() and process.poll() is None:
            time.sleep(0.01)  # polls: there is no other sign from the process
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert palr("run", "--config", "tiny.yaml", "--name", "k") == 0
    assert rows_of(Path("runs/k")) == rows_of(Path("runs/tiny"))


def test_ctrl_c_says_how_to_go_on(here: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "_ranker_rows", interrupted)
    assert palr("evaluate", "--config", "tiny.yaml", "--evaluate.bootstrap", "300") == 130
    assert "goes on where it was" in capsys.readouterr().err
    assert not Path("runs/tiny/results.json").exists()
    monkeypatch.undo()
    os.chdir(here)
    assert palr("evaluate", "--config", "tiny.yaml", "--evaluate.bootstrap", "300") == 0
    assert Path("runs/tiny/results.json").exists()


def test_recommend_by_user_and_by_titles(here: Path, capsys) -> None:
    assert palr("recommend", "--run", "runs/tiny", "--user", "u3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(" 1. Story, ")
    history = Recommender.load("runs/tiny").history_of("u3")
    assert palr("recommend", "--run", "runs/tiny", "--json", "--history", *history) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["rank"] for item in items] == list(range(1, 11))
    assert [f"{i['rank']:2}. {i['title']}  {i['score']:.4f}" for i in items] == lines
    assert not {item["title"] for item in items} & set(history)
    scores = [item["score"] for item in items]
    assert scores == sorted(scores, reverse=True)


def test_the_api_gives_probabilities_over_the_candidates(world: Path) -> None:
    recommender = Recommender.load(world / "runs/tiny")
    histories = [["Story, 3 (1953)", "story, 5 (1955)"], []]
    slates = recommender.recommend(histories, k=20)
    for slate in slates:
        assert sum(item.score for item in slate) == pytest.approx(1, abs=1e-4)
        assert len({item.item_id for item in slate}) == 20
    (alone,) = recommender.recommend(histories[:1], k=20)
    assert [item.title for item in alone] == [item.title for item in slates[0]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run"], "the following arguments are required: --config"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--config", "none.yaml"], "cannot read the config none.yaml"),
        (["run", "--config", "tiny.yaml", "--data.sorce", "x"], "did you mean --data.source?"),
        (["run", "--config", "tiny.yaml", "--seed=-1"], "seed: input should be greater than"),
        (
            ["run", "--config", "tiny.yaml", "--data.interactions", "gone.csv", "--name", "n"],
            "gone.csv",
        ),
        (
            ["run", "--config", "tiny.yaml", "--data.min_count", "9", "--name", "n"],
            "lower data.min_count",
        ),
        (
            ["run", "--config", "tiny.yaml", "--data.min_count", "4"],
            "runs/tiny holds a run on other data (data.min_count is 3 there, 4 here): "
            "choose another --name",
        ),
        (
            ["evaluate", "--config", "tiny.yaml", "--finetune.steps", "3"],
            "the stage finetune was made with another config: run `palr finetune` first",
        ),
        (
            ["evaluate", "--config", "tiny.yaml", "--name", "n"],
            "the stage prepare is not done: run `palr prepare` first",
        ),
        (["recommend", "--run", "runs/none", "--user", "u1"], "is not a run directory"),
        (["recommend", "--run", "runs/tiny", "--user", "9"], "user '9' is not in the data"),
        (
            ["recommend", "--run", "runs/tiny"],
            "one of the arguments --user --history --users is required",
        ),
        (
            ["recommend", "--run", "runs/tiny", "--history", "Storry, 3"],
            "the nearest titles are 'Story, 3 (1953)'",
        ),
        (
            ["recommend", "--run", "runs/tiny", "--user", "u1", "--k", "21"],
            "k goes from 1 to the number of candidates, 20",
        ),
        (
            ["run", "--config", "tiny.yaml", "--ranker.weights", "nowhere"],
            "nowhere is missing: name a Hugging Face folder or a GGUF file",
        ),
        (
            ["run", "--config", "tiny.yaml", "--finetune.label_length", "16"],
            "raise finetune.label_length (16)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert palr(*arguments) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("palr: ")]
    assert complaint in line
    assert not list(here.rglob("*.tmp"))


def test_a_run_of_a_newer_version_is_refused(here: Path, capsys) -> None:
    file = Path("runs/tiny/config.yaml")
    file.write_text(file.read_text().replace(f"palr_jax: {VERSION}", "palr_jax: 99.0.0"))
    for arguments in (
        ["run", "--config", "tiny.yaml"],
        ["recommend", "--run", "runs/tiny", "--user", "u1"],
    ):
        assert palr(*arguments) == 2
        assert "was written by palr-jax 99.0.0" in capsys.readouterr().err


def test_damaged_files_of_a_run_are_named(here: Path, capsys) -> None:
    run = Path("runs/tiny")
    newest = run / "ranker/PALR_v2" / str(CONFIG["finetune"]["steps"])
    largest = max((newest / "params").rglob("*"), key=lambda path: path.stat().st_size)
    for file in (largest, run / "data/split.npz"):
        os.truncate(file, file.stat().st_size // 2)
        assert palr("recommend", "--run", "runs/tiny", "--user", "u1") == 2
        assert "cannot be read" in capsys.readouterr().err
    (run / "config.yaml").write_text("- nonsense")
    assert palr("recommend", "--run", "runs/tiny", "--user", "u1") == 2
    assert "config.yaml is damaged" in capsys.readouterr().err
