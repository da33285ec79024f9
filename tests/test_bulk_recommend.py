import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palr_jax import Recommender, UserError, bulk_recommend
from palr_jax.cli import main
from palr_jax.decoding import score as score_module
from palr_jax.ragged import Ragged
from tests.locations import ROOT
from tests.programs import programs
from tests.progress import silent
from tests.xla import flags


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(world, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setattr(bulk_recommend, "PART", 8)
    return tmp_path / "w"


@pytest.fixture
def recommender(here: Path) -> Recommender:
    return Recommender.load("runs/tiny")


def test_a_table_of_all_users_equals_one_by_one(here: Path, recommender: Recommender) -> None:
    arguments = ["--run", "runs/tiny", "--users", "all", "--output", "out/recs.parquet"]
    assert main(["recommend", *arguments]) == 0
    assert os.listdir("out") == ["recs.parquet"]
    table = pl.read_parquet("out/recs.parquet")
    users = recommender.prepared.split.user_ids
    assert table["user"].to_list() == [user for user in users for _ in range(10)]
    assert table["rank"].to_list() == list(range(1, 11)) * len(users)
    for user in users[::7]:
        (slate,) = recommender.recommend([recommender.history_of(user)])
        mine = table.filter(pl.col("user") == user)
        assert mine["title"].to_list() == [item.title for item in slate]
        assert mine["item_id"].to_list() == [item.item_id for item in slate]
        np.testing.assert_allclose(mine["score"], [item.score for item in slate], atol=1e-5)
    for (user,), group in table.group_by("user"):
        assert group["title"].n_unique() == 10
        assert not set(group["title"]) & set(recommender.history_of(str(user)))


def test_users_of_a_file_are_ranked_as_one_by_one(here: Path, recommender: Recommender) -> None:
    histories = {"a": ["3", "5", "4"], "b": [], "c": ["20"]}
    lines = [json.dumps({"user": user, "history": ids}) for user, ids in histories.items()]
    Path("mine.jsonl").write_text("\n".join(lines))
    arguments = ["--run", "runs/tiny", "--input", "mine.jsonl", "--by", "id", "--k", "4"]
    assert main(["recommend", *arguments, "--output", "recs.csv"]) == 0
    table = pl.read_csv("recs.csv", schema_overrides={"item_id": pl.String})
    assert table["user"].to_list() == [user for user in histories for _ in range(4)]
    for user, ids in histories.items():
        (slate,) = recommender.recommend([ids], 4, by="id")
        mine = table.filter(pl.col("user") == user)
        assert mine["item_id"].to_list() == [item.item_id for item in slate]
        np.testing.assert_allclose(mine["score"], [item.score for item in slate], atol=1e-5)


def test_a_file_with_an_unknown_item(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.jsonl").write_text('{"user": "a", "history": ["Stroy, 3 (1953)"]}')
    arguments = ["--run", "runs/tiny", "--input", "mine.jsonl", "--output", "recs.csv"]
    assert main(["recommend", *arguments]) == 2
    assert "mine.jsonl, user 'a': no single item is titled" in capsys.readouterr().err
    assert not Path("recs.csv").exists()
    assert main(["recommend", *arguments[:4]]) == 2
    assert "go together" in capsys.readouterr().err


def test_shares_of_processes_make_the_same_table(recommender: Recommender) -> None:
    bulk_recommend.recommend_all(recommender, 5, Path("one.parquet"))
    for index in (1, 0, 2):
        bulk_recommend.make_parts(recommender, 5, Path("three.parquet"), index, 3)
        assert not Path("three.parquet").exists()
    bulk_recommend.join_parts(recommender, Path("three.parquet"))
    one, three = pl.read_parquet("one.parquet"), pl.read_parquet("three.parquet")
    assert one.drop("score").equals(three.drop("score"))
    np.testing.assert_allclose(one["score"], three["score"], atol=1e-5)


def together(here: Path, port: int, *options: tuple[str, ...]) -> list[tuple[int, str]]:
    """Exit codes and last words of processes that make one table on two devices each."""
    script = (
        "import sys; from palr_jax import bulk_recommend, cli; bulk_recommend.PART = 8\n"
        "sys.exit(cli.main(['recommend', *sys.argv[1:]]))"
    )
    group = ["--coordinator", f"localhost:{port}", "--processes", str(len(options))]
    common = ["--run", "runs/tiny", "--users", "all", "--output", "both.parquet", *group]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *common, "--process", str(index), *more],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags(2)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, more in enumerate(options)
    ]  # fmt: skip
    try:
        return [(process.returncode, said) for process in started
                for said in [process.communicate(timeout=200)[1]]]  # fmt: skip
    finally:
        for process in started:
            process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_two_processes_of_two_devices_make_the_same_table(
    here: Path, recommender: Recommender
) -> None:
    mesh = ("--mesh.data", "2")
    ended = together(here, free_port(), mesh, mesh)
    assert [code for code, _ in ended] == [0, 0], ended
    bulk_recommend.recommend_all(recommender, 10, Path("one.parquet"))
    one, both = pl.read_parquet("one.parquet"), pl.read_parquet("both.parquet")
    assert one.drop("score").equals(both.drop("score"))
    np.testing.assert_allclose(one["score"], both["score"], atol=1e-5)


def test_processes_that_differ_are_refused(here: Path) -> None:
    ended = together(here, free_port(), ("--k", "10"), ("--k", "5"))
    assert [code for code, _ in ended] == [2, 2], ended
    assert "processes differ in k: start them all alike" in ended[0][1]
    assert not Path("both.parquet").exists()


def test_what_a_kill_left_is_kept(here: Path, recommender: Recommender) -> None:
    script = (
        "from palr_jax import bulk_recommend, cli; bulk_recommend.PART = 2; "
        "cli.main('recommend --run runs/tiny --users all --output recs.parquet'.split())"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    folder = here / "recs.parquet.parts"
    while len(list(folder.glob("users-*"))) < 3 and process.poll() is None:
        time.sleep(0.01)  # polls: there is no other sign from the process
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("recs.parquet").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("users-*")}
    assert kept
    bulk_recommend.PART = 2
    bulk_recommend.make_parts(recommender, 10, Path("recs.parquet"), 0, 1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    bulk_recommend.join_parts(recommender, Path("recs.parquet"))
    bulk_recommend.recommend_all(recommender, 10, Path("again.parquet"))
    first, again = pl.read_parquet("recs.parquet"), pl.read_parquet("again.parquet")
    assert first.drop("score").equals(again.drop("score"))


def test_parts_of_another_job_are_refused(recommender: Recommender) -> None:
    bulk_recommend.make_parts(recommender, 10, Path("recs.parquet"), 0, 4)
    with pytest.raises(UserError, match=r"holds parts of a job with another k: delete it"):
        bulk_recommend.make_parts(recommender, 5, Path("recs.parquet"), 0, 4)


def test_hundreds_of_batches_share_a_program_for_each_width(recommender: Recommender) -> None:
    """Histories and candidates of all kinds: no batch but the first of a width compiles."""
    rng = np.random.default_rng(0)
    ranker = recommender.ranker
    users = 16 * 300
    histories = Ragged.from_rows(rng.permutation(69)[: rng.integers(0, 6)] for _ in range(users))
    candidates = np.array([rng.permutation(69)[:20] for _ in range(users)])
    profiles = [""] * users
    ranker = replace(ranker, fit=ranker.sizes(candidates).cover)
    widths = {
        -(-len(prompt) // 128) for prompt in ranker.read(histories, profiles, candidates).tokens
    }
    before = programs(score_module.score_step)
    for start in range(0, users, 16):
        few = slice(start, start + 16)
        ranker.score(histories.take(range(users)[few]), profiles[few], candidates[few], silent)
    assert programs(score_module.score_step) - before <= len(widths)


def test_users_and_output_go_together(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--run", "runs/tiny", "--users", "all"]) == 2
    assert "go together: give both" in capsys.readouterr().err


def test_one_user_is_no_work_for_processes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--run", "runs/tiny", "--user", "1", "--process", "0"]) == 2
    assert "several processes make the slates of many users" in capsys.readouterr().err


@pytest.mark.parametrize("k", [0, -1, 21])
def test_a_wrong_k_leaves_nothing_behind(here: Path, recommender: Recommender, k: int) -> None:
    before = set(os.listdir())
    with pytest.raises(UserError, match=f"{k} items cannot be recommended: k goes from 1 to the"):
        bulk_recommend.recommend_all(recommender, k, Path("wrong.csv"))
    assert set(os.listdir()) == before
