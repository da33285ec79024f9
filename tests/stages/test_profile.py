"""Profiles in the words of an LLM, as the profile stage writes them."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml
from flax import nnx

from palr_jax import Recommender
from palr_jax.config import load_config
from palr_jax.data import prepare as preparing
from palr_jax.json_types import JsonObject
from palr_jax.llm.checkpoints.export import export_model
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.parallel import processes
from palr_jax.ragged import Ragged
from palr_jax.ranking.profile_speaker import Answer, Speaker
from palr_jax.run_directory import RunDirectory
from palr_jax.stages.profile import profile
from tests.stages.test_run import palr
from tests.world import CONFIG, USERS, write_world

LINES = Path("runs/tiny/profiles.jsonl")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a LLaMA that has learnt nothing, and a config that asks it."""
    write_world(tmp_path)
    tokenizer = train_tokenizer(["Your task is to use keywords", '"Story, 3 (1953)": War'], 500)
    shape = LlamaConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8, ffn_dim=24, max_length=900,
    )  # fmt: skip
    export_model(Llama(shape, nnx.Rngs(params=0)), tokenizer, tmp_path / "llm")
    profile = {"kind": "llm", "answer": "free", "weights": "llm", "batch_size": 8, "new_tokens": 8}
    config = {**CONFIG, "profile": profile}
    (tmp_path / "llm.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert palr("prepare", "--config", "llm.yaml") == 0
    return tmp_path


def lines() -> list[JsonObject]:
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def answering(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Lets every second user of a batch get a good answer; returns the batches asked for."""
    asked: list[int] = []

    def answers(speaker: Speaker, histories: Ragged) -> list[Answer]:
        if len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(len(histories))
        good = ("Adventure: x; Noir: y", ("adventure", "noir"))
        return [good if row % 2 else ("?", ()) for row in range(len(histories))]

    monkeypatch.setattr(Speaker, "answers", answers)
    return asked


def test_answers_that_cannot_be_read_leave_the_keyword_profile(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch)
    assert palr("profile", "--config", "llm.yaml") == 0
    written = lines()
    assert palr("profile", "--config", "tiny.yaml", "--name", "tiny") == 0
    plain = lines()
    assert [line["user"] for line in written] == [line["user"] for line in plain]
    for row, (line, keyword_line) in enumerate(zip(written, plain, strict=True)):
        if row % 8 % 2:
            assert line["profile"] == "The user enjoys adventure and noir movies."
            assert line["from"] == "llm"
        else:
            assert line["profile"] == keyword_line["profile"] != ""
            assert line["from"] == "keywords"


def test_a_stopped_stage_goes_on_behind_the_last_whole_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch)
    assert palr("profile", "--config", "llm.yaml") == 0
    expected = LINES.read_bytes()
    half = f"{USERS // 2} of {USERS}"
    LINES.unlink()
    (here / "runs/tiny/stages.json").unlink()
    assert palr("prepare", "--config", "llm.yaml") == 0
    answering(monkeypatch, stop_after=2)
    assert palr("profile", "--config", "llm.yaml") == 130
    assert len(lines()) == 16
    with LINES.open("a") as file:
        file.write('{"user": "u16", "pro')  # a kill in the middle of a line
    asked = answering(monkeypatch)
    capsys.readouterr()
    assert palr("profile", "--config", "llm.yaml") == 0
    assert sum(asked) == USERS - 16
    assert LINES.read_bytes() == expected
    assert f"profiles: {half} by the LLM" in capsys.readouterr().err


def test_processes_divide_the_users_and_write_what_one_writes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(speaker: Speaker, histories: Ragged) -> list[Answer]:
        return [(f"{len(histories)} {history.tolist()}", ("noir",)) for history in histories]

    monkeypatch.setattr(Speaker, "answers", answers)
    assert palr("profile", "--config", "llm.yaml") == 0
    expected = LINES.read_bytes()
    # Two batches were written before a stop.
    LINES.write_bytes(b"".join(expected.splitlines(keepends=True)[:16]))
    config, run = load_config(here / "llm.yaml", {}), RunDirectory(Path("runs/tiny"))
    meeting, index = threading.Barrier(3, timeout=60), threading.local()
    said: list[Any] = [None] * 3

    def gather(value: object) -> list[Any]:
        said[index.here] = value
        meeting.wait()
        found = list(said)
        meeting.wait()
        return found

    def led(work: Callable[[], object]) -> object:
        return gather(work() if index.here == 0 else None)[0]

    def process(number: int) -> None:
        index.here = number
        profile(config, run)

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: index.here)
    monkeypatch.setattr(processes, "gather", gather)
    monkeypatch.setattr(processes, "led", led)
    monkeypatch.setattr(processes, "is_leader", lambda: index.here == 0)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(process, range(3)))
    assert LINES.read_bytes() == expected
    assert [len(lines) for lines in said] == [8, USERS - 16 - 8, 0]


def test_only_what_profiles_say_makes_them_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch)
    assert palr("profile", "--config", "llm.yaml") == 0
    batches = len(asked)
    assert palr("profile", "--config", "llm.yaml", "--instruct.length", "399") == 0
    assert len(asked) == batches
    assert palr("profile", "--config", "llm.yaml", "--instruct.item_kind", "films") == 0
    assert len(asked) == 2 * batches
    assert "films" in lines()[1]["profile"]


def test_a_whole_run_with_an_untrained_llm_reports_its_silence(here: Path) -> None:
    options = ["--ranker.variants", "[PALR_v2]"]
    assert palr("run", "--config", "llm.yaml", *options) == 0
    results = json.loads(Path("runs/tiny/results.json").read_text())
    told = [line for line in lines() if line["from"] == "llm"]
    assert results["protocol"]["profiles"].startswith(f"{len(told)} of {USERS} by the LLM")
    assert all(isinstance(line["answer"], str) for line in lines())
    (slate,) = Recommender.load("runs/tiny").recommend([["Story, 3 (1953)"]])
    assert len(slate) == 10


def test_an_untrained_llm_chooses_categories_of_each_user(here: Path) -> None:
    assert palr("profile", "--config", "llm.yaml", "--profile.answer", "categories") == 0
    prepared = preparing.load(Path("runs/tiny/data"))
    for line, history in zip(lines(), prepared.split.train, strict=True):
        shown = history[-CONFIG["instruct"]["history"] :]
        own = {name.lower() for item in shown for name in prepared.catalog.categories[item]}
        chosen = line["answer"].split("; ")
        assert set(chosen) <= own
        assert len(set(chosen)) == len(chosen) == min(3, len(own))
        assert line["from"] == "llm"
        assert all(name in line["profile"] for name in chosen)


def test_a_catalog_without_categories_has_none_to_choose(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [line.rpartition(",")[0] + "," for line in Path("t.csv").read_text().splitlines()[1:]]
    Path("t.csv").write_text("\n".join(["item,title,categories", *items]) + "\n")
    assert palr("prepare", "--config", "llm.yaml") == 0
    assert palr("profile", "--config", "llm.yaml", "--profile.answer", "categories") == 2
    assert "no item has any: set profile.answer to free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--profile.weights", "null"], "kind llm needs a LLaMA: name it in profile.weights"),
        (["--profile.weights", "nowhere"], "nowhere is missing"),
    ],
)
def test_a_missing_llm_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert palr("profile", "--config", "llm.yaml", *options) == 2
    assert complaint in capsys.readouterr().err
