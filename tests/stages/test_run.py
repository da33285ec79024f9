"""The whole of PALR on a small table, through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palr_jax import Recommender
from palr_jax.cli import main
from palr_jax.config import Config
from palr_jax.data import prepare
from palr_jax.io.provenance import fingerprint
from palr_jax.json_types import JsonObject
from palr_jax.llm.config import LoRAConfig
from palr_jax.run_directory import VERSION
from palr_jax.stages import evaluate
from palr_jax.stages.run import _ADDED, STAGES, made_from
from tests.world import CONFIG

NAMES = ["Popularity", "SASRec", "SASRec + popularity", "PALR_v1", "PALR_v2", "PALR_v2 + SASRec"]


def palr(*arguments: str) -> int:
    return main(list(arguments))


def rows_of(run: Path) -> list[JsonObject]:
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
        assert f"<th scope='row'>{name}</th>" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<figure>") == 3  # two charts of curves, and reliability
    assert "The candidate movies are:" in text
    assert "label tokens" in text
    assert "Recommendations:\n«&quot;Story, " in text
    assert "&quot;Story, " in text


def test_groups_are_of_the_same_users_as_the_rows(world: Path) -> None:
    results = json.loads((world / "runs/tiny/results.json").read_text())
    groups, rows = results["groups"], {row["model"]: row for row in results["rows"]}
    assert (groups["baseline"], groups["models"]) == (NAMES[1], [NAMES[2], *NAMES[4:]])
    split = prepare.load(world / "runs/tiny/data").split
    popularity = [int((split.train.values_N == item).sum()) for item in split.test_U]
    values = {"history": [len(train) + 1 for train in split.train], "popularity": popularity}
    for name, parts in groups["lift"].items():
        assert sum(part["users"] for part in parts) == split.num_users
        for model in groups["models"]:  # the groups' lifts make up the whole lift
            total = sum(part["users"] * part["lift"][model]["mean"] for part in parts)
            whole = rows[model]["NDCG@10"] - rows["SASRec"]["NDCG@10"]
            assert total / split.num_users == pytest.approx(whole, abs=1e-5)
        for part in parts:
            high = part["to"] if part["to"] is not None else np.inf
            held = [part["from"] <= value <= high for value in values.get(name, [])]
            assert name not in values or part["users"] == sum(held)
    proposed = np.load(world / "runs/tiny/retriever/sasrec/candidates.npz")["test_items"]
    found = sum(target in items for target, items in zip(split.test_U, proposed, strict=True))
    assert groups["moves"]["found"] == groups["reliability"]["found"] == found
    slates = np.load(world / "runs/tiny/slates.npz")
    for model, moved in groups["moves"]["models"].items():
        assert sum(map(sum, moved["counts"])) == found
        if model in slates:  # the ranks up to 10 are those of the slates
            ends = [part["to"] for part in groups["moves"]["ranks"]]
            hits = sum(row[column] for row in moved["counts"] for column in range(len(ends))
                       if ends[column] <= 10)  # fmt: skip
            assert hits == (slates[model] == split.test_U[:, None]).any(axis=1).sum()
    bins = groups["reliability"]["bins"]
    assert sum(one["all"]["candidates"] for one in bins) == (proposed >= 0).sum()
    hits = sum(one["all"]["candidates"] * one["all"]["observed"] for one in bins)
    assert hits == pytest.approx(found, abs=0.01)


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
    command = [str(palr_command), "run", "--config", "tiny.yaml", "--name", "k"]
    for wanted in ("runs/k/retriever/sasrec", "runs/k/ranker/PALR_v1/2", "runs/k/ranker/PALR_v2"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not Path(wanted).exists() and process.poll() is None:
            time.sleep(0.01)  # polls: there is no other sign from the process
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert palr("run", "--config", "tiny.yaml", "--name", "k") == 0
    assert rows_of(Path("runs/k")) == rows_of(Path("runs/tiny"))


def test_ctrl_c_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_ranker_rows", interrupted)
    assert palr("evaluate", "--config", "tiny.yaml", "--evaluate.bootstrap", "300") == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert not Path("runs/tiny/results.json").exists()
    monkeypatch.undo()
    os.chdir(here)
    assert palr("evaluate", "--config", "tiny.yaml", "--evaluate.bootstrap", "300") == 0
    assert Path("runs/tiny/results.json").exists()


def test_recommend_by_user_and_by_titles(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
            "runs/tiny holds a run on other data (its data.min_count is 3, not 4): "
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
            "one of the arguments --user --history --users --input is required",
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


def test_a_run_of_a_newer_version_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("runs/tiny/config.yaml")
    file.write_text(file.read_text().replace(f"palr_jax: {VERSION}", "palr_jax: 99.0.0"))
    for arguments in (
        ["run", "--config", "tiny.yaml"],
        ["recommend", "--run", "runs/tiny", "--user", "u1"],
    ):
        assert palr(*arguments) == 2
        assert "was written by palr-jax 99.0.0" in capsys.readouterr().err


def test_damaged_files_of_a_run_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("runs/tiny")
    newest = run / "ranker/PALR_v2" / str(CONFIG["finetune"]["steps"])
    largest = max((newest / "params").rglob("*"), key=lambda path: path.stat().st_size)
    for file in (largest, run / "data/split.npz"):
        os.truncate(file, file.stat().st_size // 2)
        assert palr("recommend", "--run", "runs/tiny", "--user", "u1") == 2
        assert f"{file} is damaged: run `palr run`" in capsys.readouterr().err
    (run / "config.yaml").write_text("- nonsense")
    assert palr("recommend", "--run", "runs/tiny", "--user", "u1") == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_damaged_files_of_all_stages_are_made_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rows = Path("runs/tiny"), rows_of(Path("runs/tiny"))
    newest = run / "ranker/PALR_v2" / str(CONFIG["finetune"]["steps"])
    checkpoint = max((newest / "params").rglob("*"), key=lambda path: path.stat().st_size)
    names = ("data/catalog.parquet", "retriever/sasrec/candidates.npz", "profiles.jsonl",
             "retriever/sasrec/finished.json", "metrics.jsonl", "ranker/items.npz", "fusion.json",
             "slates.npz", "report.html")  # fmt: skip
    for file in (checkpoint, *(run / name for name in names)):
        file.write_bytes(b"\x00" + file.read_bytes()[: file.stat().st_size // 2])
    (run / "results.json").unlink()
    assert palr("run", "--config", "tiny.yaml") == 0
    assert rows_of(run) == rows
    assert capsys.readouterr().err.count("is missing or damaged, so it is made again") == 5
    assert palr("run", "--config", "tiny.yaml") == 0
    assert capsys.readouterr().err.count("done before, skipped") == 5


def test_fewer_steps_than_lines_are_logged(here: Path) -> None:
    assert palr("run", "--config", "tiny.yaml", "--finetune.log_every", "50") == 0
    lines = (here / "runs/tiny/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 4]


def test_a_second_run_in_the_same_directory_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import sys; from palr_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "finetune", "--config", "tiny.yaml"]
    options = ["--finetune.steps", "100000", "--ranker.variants", "[PALR_v2]"]
    first = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    metrics = here / "runs/tiny/metrics.jsonl"

    def logged() -> list[int]:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [json.loads(line)["step"] for line in lines]

    try:
        while max(logged(), default=0) < 10:  # the run before ended with step 4
            assert first.poll() is None
            time.sleep(0.05)  # polls: there is no other sign from the process
        # Who reads meanwhile neither disturbs nor is disturbed.
        assert palr("recommend", "--run", "runs/tiny", "--user", "u1") == 0
        assert palr("run", "--config", "tiny.yaml") == 2
        assert f"is in use by process {first.pid} on" in capsys.readouterr().err
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait() == 143
    assert logged() == list(range(1, len(logged()) + 1))


# All that a ranker can learn from its retriever, and all that is measured of it.
RECIPE = {
    "finetune.objective": "candidates", "finetune.moments": "6", "finetune.validation_share": "0.2",
    "finetune.validate_every": "2", "instruct.prompt": "history", "instruct.held_out": "time",
    "instruct.user_share": "1", "instruct.moments": "3", "ranker.variants": "[PALR_v2]",
    "ranker.prior": "retriever", "ranker.item_embeddings": "[retriever]",
    "evaluate.controls": "true",
}  # fmt: skip


@pytest.mark.parametrize("recipe", [{}, RECIPE], ids=["paper", "candidates"])
def test_one_user_with_few_unseen_items_gets_those(here: Path, recipe: dict[str, str]) -> None:
    """All other users keep their ten; nobody's slate holds what the user has seen."""
    rows = [f"u3,{item},{900 + item}" for item in range(80)]
    with (here / "i.csv").open("a") as file:
        file.write("\n".join(rows) + "\n")
    options = [part for key, value in recipe.items() for part in (f"--{key}", value)]
    assert palr("run", "--config", "tiny.yaml", *options) == 0
    split = prepare.load(here / "runs/tiny/data").split
    (user,) = np.flatnonzero(split.user_ids == "u3")
    left = split.num_items - len({*split.train[user], split.validation_U[user]})
    assert left < 10
    slates = dict(np.load(here / "runs/tiny/slates.npz"))
    assert slates.pop("users").tolist() == list(range(split.num_users))
    for slate_UK in slates.values():
        assert (slate_UK[user] >= 0).sum() == left
        assert ((slate_UK >= 0).sum(axis=1) == 10).sum() == split.num_users - 1
    output = here / "all.csv"
    assert palr("recommend", "--run", "runs/tiny", "--users", "all", "--output", str(output)) == 0
    table = pl.read_csv(output)
    assert table.columns == ["user", "rank", "item_id", "title", "score"]
    assert "u3" not in table["user"].to_list()  # with its test item, it has seen all
    assert len(table) == 10 * (split.num_users - 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--output", "r.txt"], "end it in .parquet or .csv"),
        (["--output", "runs.csv", "--exclude", "x"], "--exclude is for one user"),
        (["--output", "runs.csv", "--candidates", "x"], "--candidates is for one user"),
        (["--output", "runs.csv", "--explain"], "--explain is for one user"),
        (["--output", "runs.csv", "--json"], "--json is for one user"),
        (["--output", "runs.csv", "--k", "-1"], "k goes from 1 to"),
        (["--output", "mine.csv"], "mine.csv.parts holds 'thesis' and no parts"),
    ],
)
def test_what_does_not_go_with_all_users_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    (here / "mine.csv.parts").mkdir()
    (here / "mine.csv.parts/thesis").write_text("mine")
    assert palr("recommend", "--run", "runs/tiny", "--users", "all", *options) == 2
    assert complaint in capsys.readouterr().err
    assert (here / "mine.csv.parts/thesis").read_text() == "mine"


def test_stages_of_version_0_2_stay_done() -> None:
    """The default of a key that was added later changes no stage; another value does."""
    of_0_2 = {
        "prepare": "e344a673140e3e97", "retrieve": "aaafae6f16b5243a",
        "profile": "942083ec1849f0a0", "finetune": "87bfc23907b67249",
        "evaluate": "d880399f05d77071",
    }  # fmt: skip
    config = Config(name="x")
    found = {stage: fingerprint(made_from(stage, config)) for stage in STAGES}
    assert found == of_0_2
    for section, name in _ADDED:
        assert name not in made_from("finetune", config)[section]
    adapted = replace(config.ranker, weights="w", lora=LoRAConfig())
    plain = replace(config, ranker=adapted)
    other = replace(config, ranker=replace(adapted, quantize="int8"))
    assert made_from("finetune", plain) != made_from("finetune", other)
