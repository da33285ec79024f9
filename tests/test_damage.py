"""Every file of a run, damaged in every way: its reader gives the result or a one-line error."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax import Recommender, UserError
from palr_jax.io.files import write_arrays

HISTORY = ["Story, 3 (1953)", "Story, 5 (1955)"]


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(world / "runs/tiny", tmp_path_factory.mktemp("damage") / "tiny")


def cut(file: Path, place: float) -> None:
    os.truncate(file, int(file.stat().st_size * place))


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[int(len(content) * place)] ^= 0xFF
    file.write_bytes(content)


def put_folder(file: Path, place: float) -> None:
    file.unlink()
    file.mkdir()


def put_json(file: Path, place: float) -> None:
    file.write_text(["[]", "3", '{"a": null}', "NaN", '{"weight": "x"}'][int(place * 5)])


def put_arrays(file: Path, place: float) -> None:
    arrays: list[dict[str, np.ndarray]] = [
        {},
        {"count_I": np.zeros((2, 2))},
        {"tokens_N": np.zeros(3), "offsets_I1": np.ones(3)},
    ]
    write_arrays(file, **arrays[int(place * 3)])


DAMAGE: list[Callable[[Path, float], None]] = [
    cut, flip, put_folder, put_json, put_arrays, lambda file, place: file.unlink(),
]  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_any_damage_gives_a_slate_or_one_line(run: Path, data: st.DataObject) -> None:
    files = sorted(file for file in run.rglob("*") if file.is_file())
    file = run / data.draw(st.sampled_from([f"{one.relative_to(run)}" for one in files]))
    damage = data.draw(st.sampled_from(DAMAGE))
    before, times = file.read_bytes(), file.stat()
    # Without stages.json no stamp detects the damage, so each reader must.
    state = run / "stages.json"
    is_noted = file != state and data.draw(st.booleans())
    noted = state.read_bytes()
    damage(file, data.draw(st.floats(0, 0.99)))
    try:
        if not is_noted and state.is_file():
            state.unlink()
        slates = Recommender.load(run).recommend([HISTORY])
        assert len({item.title for item in slates[0]}) == 10
    except UserError as error:
        line = str(error)
        assert "\n" not in line
    finally:
        for path, content in ((file, before), (state, noted)):
            if path.is_dir():
                path.rmdir()
            path.write_bytes(before if path == file else content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
