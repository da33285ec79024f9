"""When a stage counts as done, and when it runs again."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palr_jax.data.reading import part_files, read_content
from palr_jax.errors import UserError
from palr_jax.stage_log import Stage, StageLog


class World:
    """Two stages: `prepare` copies a file, `finetune` reads that copy and weights."""

    def __init__(self, folder: Path) -> None:
        self.run, self.data, self.weights = folder / "run", folder / "data", folder / "weights"
        self.weights.mkdir(parents=True)
        (self.weights / "config.json").write_text("1")
        self.data.write_text("rows")
        self.run.mkdir()
        self.made: list[str] = []
        self.prepare = Stage("prepare", {"seed": 0}, outputs=(self.run / "split",))
        self.finetune = Stage(
            "finetune",
            {"seed": 0},
            inputs=(self.weights,),
            after=("prepare",),
            outputs=(self.run / "ranker", self.run / "metrics.jsonl"),
        )

    def go(self) -> list[str]:
        """Runs the stages that are not done; returns the stages that ran."""
        self.made = []
        log = StageLog(self.run)
        log.run(self.prepare, self._prepare)
        log.require(self.prepare)
        log.run(self.finetune, self._finetune)
        return self.made

    def _prepare(self) -> None:
        (self.run / "split").write_bytes(read_content(self.data, "mend it").data)
        self.made.append("prepare")

    def _finetune(self) -> None:
        for step in (1, 2):
            (self.run / "ranker" / str(step)).mkdir(parents=True, exist_ok=True)
            (self.run / "ranker" / str(step) / "params").write_text(f"{step}")
        (self.run / "metrics.jsonl").write_text("{}\n")
        self.made.append("finetune")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    assert world.go() == ["prepare", "finetune"]
    assert world.go() == []
    return world


def test_a_stage_is_checked_if_it_runs_and_before_anything_is_deleted(world: World) -> None:
    checks: list[str] = []

    def refuse() -> None:
        checks.append("refused")
        raise UserError("no")

    StageLog(world.run).run(world.finetune, world._finetune, refuse)
    assert not checks, "it is done, and so skipped"
    before = sorted((world.run / "ranker").rglob("*"))
    other = replace(world.finetune, settings={"seed": 1})
    with pytest.raises(UserError, match="no"):
        StageLog(world.run).run(other, world._finetune, refuse)
    assert checks == ["refused"]
    assert sorted((world.run / "ranker").rglob("*")) == before
    assert world.go() == []


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda world: world.data.write_text("other rows"), ["prepare", "finetune"]),
        (lambda world: world.data.write_text("swor"), ["prepare", "finetune"]),
        (lambda world: touch(world.data), []),
        (lambda world: world.data.unlink(), []),
        (lambda world: (world.weights / "config.json").write_text("2"), ["finetune"]),
        (lambda world: (world.weights / "new").write_text("2"), ["finetune"]),
        (lambda world: (world.weights / ".cache").write_text("2"), []),
        (lambda world: touch(world.weights / "config.json"), []),
        (lambda world: world.weights.rename(world.run / "elsewhere"), []),
    ],
)
def test_a_stage_is_made_again_if_what_it_was_made_from_has_changed(
    world: World, change: Callable[[World], object], made: list[str]
) -> None:
    change(world)
    assert world.go() == made
    assert world.go() == []


@pytest.mark.parametrize("name", ["", "part-*"])
@pytest.mark.parametrize(
    ("change", "is_made"),
    [
        (lambda parts: (parts / "part-3").write_text("3"), True),
        (lambda parts: (parts / "part-1").unlink(), True),
        (lambda parts: (parts / "part-1").write_text("one"), True),
        (lambda parts: (parts / "part-1").rename(parts / "part-0"), True),
        (lambda parts: touch(parts / "part-1"), False),
        (lambda parts: (parts / "_SUCCESS").write_text(""), False),
        (lambda parts: parts.rename(parts.with_name("elsewhere")), False),
    ],
)
def test_a_stage_is_made_again_if_the_parts_of_its_data_have_changed(
    tmp_path: Path, name: str, change: Callable[[Path], object], is_made: bool
) -> None:
    parts, run = tmp_path / "parts", tmp_path / "run"
    for folder in (parts, run):
        folder.mkdir()
    for part in ("part-1", "part-2"):
        (parts / part).write_text("rows")
    made: list[str] = []

    def prepare() -> None:
        read = [read_content(part, "mend it") for part in part_files(parts / name, "mend it")]
        made.append(" ".join(content.file.name for content in read))

    def go() -> list[str]:
        made.clear()
        StageLog(run).run(Stage("prepare", {}), prepare)
        return made

    assert go() == ["part-1 part-2"]
    assert go() == []
    change(parts)
    assert bool(go()) == is_made
    assert go() == []


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("split", ["prepare"]),
        ("ranker/2/params", ["finetune"]),
        ("metrics.jsonl", ["finetune"]),
        ("ranker/1/params", ["finetune"]),  # the best step may be an old one
    ],
)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\x00")])
def test_a_stage_is_made_again_if_an_output_is_missing_or_damaged(
    world: World, name: str, made: list[str], damage: Callable[[Path], object]
) -> None:
    path = world.run / name
    damage(path)
    with pytest.raises(UserError, match=f"missing or damaged: run `palr {made[0]}` first"):
        StageLog(world.run).require(getattr(world, made[0]))
    assert world.go() == made
    assert world.go() == []


def test_a_damaged_file_is_deleted_and_what_a_stage_goes_on_from_is_not(world: World) -> None:
    damaged = [world.run / name for name in ("split", "ranker/2/params", "metrics.jsonl")]
    for path in damaged:
        path.write_bytes(b"\x00")
    seen: dict[str, bytes] = {}

    def look() -> None:
        seen.update({path.name: path.read_bytes() for path in damaged if path.exists()})

    log = StageLog(world.run)
    log.run(world.prepare, look)
    log.run(world.finetune, look)
    assert seen == {"params": b"\x00", "metrics.jsonl": b"\x00"}


def test_other_weights_leave_nothing_of_an_unfinished_training(world: World) -> None:
    """So that no adapter is put on weights that it was not trained on."""

    def stopped() -> None:
        world._finetune()
        raise KeyboardInterrupt

    other = replace(world.finetune, settings={"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        StageLog(world.run).run(other, stopped)
    (world.weights / "config.json").write_text("2")
    there = []
    StageLog(world.run).run(other, lambda: there.append((world.run / "ranker").exists()))
    assert there == [False]


def test_files_of_others_beside_the_outputs_stay(world: World) -> None:
    mine = world.run / "thesis"
    mine.write_text("mine")
    world.data.write_text("other rows")
    assert world.go() == ["prepare", "finetune"]
    assert mine.read_text() == "mine"


def test_a_run_of_an_earlier_version_is_done(world: World) -> None:
    file = world.run / "stages.json"
    old = {
        name: {key: entry[key] for key in ("fingerprint", "done", "seconds")}
        for name, entry in json.loads(file.read_text()).items()
    }
    file.write_text(json.dumps(old))
    assert world.go() == []
    (world.run / "split").unlink()
    assert world.go() == ["prepare"]


def test_reading_checks_what_is_read(world: World) -> None:
    log = StageLog(world.run)
    (world.run / "metrics.jsonl").write_text("changed")
    log.check([world.run / "split", world.run / "ranker"])
    (world.run / "ranker/2/params").write_text("changed")
    with pytest.raises(UserError, match="ranker/2/params is damaged: run `palr run`"):
        log.check([world.run / "split", world.run / "ranker"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("fingerprint", "done", "seconds", "inputs", "outputs"), JSON)
)
STATES = st.binary(max_size=30) | (
    JSON | st.fixed_dictionaries({}, optional={"prepare": ENTRIES, "finetune": ENTRIES})
).map(lambda value: json.dumps(value).encode())


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(STATES)
def test_any_stages_json_gives_a_run_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    world = World(tmp_path_factory.mktemp("any"))
    (world.run / "stages.json").write_bytes(content)
    try:
        world.go()
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        return
    assert (world.run / "split").read_text() == "rows"
