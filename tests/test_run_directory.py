"""What a run directory reuses, and what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.cli import main
from palr_jax.config import Config
from palr_jax.errors import UserError
from palr_jax.evaluation.fusion import Weights
from palr_jax.io.files import write_arrays
from palr_jax.run_directory import RunDirectory
from tests.world import write_world


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {f"{file}": file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("stage", ["run", "prepare", "finetune", "evaluate", "show-examples"])
@pytest.mark.parametrize(
    ("files", "options"),
    [
        (["p/data/thesis"], ["--runs", ".", "--name", "p"]),
        (["p/ranker/model"], ["--runs", ".", "--name", "p"]),
        (["data/thesis"], ["--runs", "runs", "--name", ".."]),
        (["runs/data/thesis"], ["--runs", "runs", "--name", "."]),
        (["p/config.yaml"], ["--runs", ".", "--name", "p"]),
        (["p/stages.json"], ["--runs", ".", "--name", "p"]),
        (["p"], ["--runs", ".", "--name", "p"]),
    ],
)
def test_a_folder_of_something_else_is_left_as_it_is(
    here: Path, files: list[str], options: list[str], stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs").mkdir(exist_ok=True)
    for name in files:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("mine: 1\n")
    before = tree(here)
    assert main([stage, "--config", "tiny.yaml", *options]) == 2
    assert tree(here) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert "delete" not in line


def test_an_empty_folder_is_taken_and_so_is_one_that_a_kill_left(here: Path) -> None:
    for name, left in (("empty", ()), ("killed", (".lock", ".config.yaml.77.tmp"))):
        (here / "runs" / name).mkdir(parents=True)
        for file in left:
            (here / "runs" / name / file).touch()
        assert main(["prepare", "--config", "tiny.yaml", "--name", name]) == 0


def test_files_of_the_user_in_a_run_stay(here: Path) -> None:
    assert main(["prepare", "--config", "tiny.yaml"]) == 0
    mine = [here / "runs/tiny" / name for name in ("thesis", "data/thesis", "ranker/thesis")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    rows = (here / "i.csv").read_text().splitlines()
    (here / "i.csv").write_text("\n".join(rows[:-1]) + "\n")
    assert main(["prepare", "--config", "tiny.yaml"]) == 0
    assert {file.read_text() for file in mine} == {"mine"}


def test_changed_rows_and_titles_are_read_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--config", "tiny.yaml"]) == 0
    for name in ("i.csv", "t.csv"):
        text = (here / name).read_text()
        (here / name).write_text(text.replace("Story", "Tales").replace("u3,", "x3,"))
        capsys.readouterr()
        assert main(["prepare", "--config", "tiny.yaml"]) == 0
        assert f"{name} has changed, so this stage is run again" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["prepare", "--config", "tiny.yaml"]) == 0
    assert "done before, skipped" in capsys.readouterr().err


def test_a_held_directory_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(here / "runs/tiny")
    with run.held():
        assert main(["prepare", "--config", "tiny.yaml"]) == 2
    assert "runs/tiny is in use by process " in capsys.readouterr().err
    assert main(["prepare", "--config", "tiny.yaml"]) == 0


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60) | st.text(alphabet="palr_jx: 01[]{}&*-\n\"'!,", max_size=60))
def test_any_config_of_a_run_is_read_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    run.config_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for call in (run.read_config, lambda: run.write_config(Config(name="x"))):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "delete" not in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from(["tokens_N", "offsets_I1", "x"]),
        st.sampled_from(
            [
                np.arange(3), np.arange(3.0), np.zeros((2, 2), int), np.array(1), np.array(["x"]),
                np.array([0, 3]), np.array([3, 0]), np.array([], int), np.array([0, 9, 3]),
            ]
        ),
    )
)  # fmt: skip
def test_any_arrays_are_read_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    write_arrays(run.items, **arrays)
    write_arrays(run.candidates("sasrec"), **arrays)
    for call in (run.read_tokens, lambda: run.read_candidates("sasrec")):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ranker", "popularity"])
@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-1", '"x"', "null", "[1]"])
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, weight: str, name: str) -> None:
    run = RunDirectory(tmp_path)
    run.write_weights(Weights(0.5, 0.25, -0.5, True), "some users")
    assert run.read_weights() == Weights(0.5, 0.25, -0.5, True)
    whole = run.fusion.read_text()
    run.fusion.write_text(whole.replace(f'"{name}": 0.', f'"{name}": {weight}, "": 0.'))
    with pytest.raises(UserError, match=r"fusion\.json cannot be read .*: delete it and run"):
        run.read_weights()


def test_a_run_of_version_0_1_keeps_its_presets(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config_file.write_text("palr_jax: 0.1.0\nname: x\ntuned: {caser: {dim: 8}}\n")
    assert run.read_config() == Config(name="x", retriever_presets={"caser": {"dim": 8}})


def test_weights_of_version_0_1_have_no_gate(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.fusion.write_text('{"ranker": 0.5, "popularity": 0.1, "tuned on": "some users"}')
    assert run.read_weights() == Weights(0.5, 0.1, 0.0, False)


@pytest.mark.parametrize("text", ["{}", '{"weight": 1.0}', "[]", "3"])
def test_weights_that_are_not_there_are_missed(tmp_path: Path, text: str) -> None:
    run = RunDirectory(tmp_path)
    run.fusion.write_text(text)
    with pytest.raises(UserError, match=r"fusion\.json cannot be read .*: delete it and run"):
        run.read_weights()
