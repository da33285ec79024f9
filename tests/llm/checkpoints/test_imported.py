"""Imported checkpoints: round trips are exact, memory use is small."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import DTypeLike
from safetensors.numpy import load_file

from palr_jax import llm
from palr_jax.cli import main
from palr_jax.errors import UserError
from palr_jax.llm.checkpoints import huggingface
from palr_jax.llm.checkpoints.loading import read_checkpoint
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from tests.llm.variants import BF16, VARIANTS, tensors, write_checkpoint
from tests.locations import ROOT


def same(one: Path, other: Path) -> None:
    """Two checkpoints hold the same shape, the same bits and the same tokenizer."""
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert first.config == second.config
    assert first.arrays.keys() == second.arrays.keys()
    for path, array in first.arrays.items():
        assert array.dtype == second.arrays[path].dtype
        np.testing.assert_array_equal(array, second.arrays[path])
    if first.tokenizer is None:
        assert second.tokenizer is None
    else:
        assert second.tokenizer is not None
        assert first.tokenizer.files() == second.tokenizer.files()


@pytest.mark.parametrize("variant", ["llama3", "llama3-new-keys", "linear", "mistral"])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_import_export_import_keeps_every_bit(
    variant: str, dtype: DTypeLike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["Toy Story (1995)"], 400)
    config = {**VARIANTS[variant], "vocab_size": tokenizer.vocab_size}
    start, imported, exported, again = (tmp_path / name for name in "abcd")
    write_checkpoint(start, config, shards=2, dtype=dtype)
    for name, content in tokenizer.files().items():
        (start / name).write_bytes(content)
    assert main(["import-weights", "--from", str(start), "--to", str(imported)]) == 0
    kind = "float32" if dtype == np.float32 else "bfloat16"
    assert f"parameters ({kind}), a tokenizer of" in capsys.readouterr().out
    assert main(["export", "--weights", str(imported), "--to", str(exported)]) == 0
    assert main(["import-weights", "--from", str(exported), "--to", str(again)]) == 0
    same(start, imported)
    same(imported, again)
    written = load_file(exported / "model.safetensors")
    for name, value in tensors(config).items():
        np.testing.assert_array_equal(written[name], value.astype(dtype))


def test_a_large_model_is_written_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS["llama3"])
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", 6000)
    assert main(["export", "--weights", str(tmp_path / "a"), "--to", str(tmp_path / "b")]) == 0
    files = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    values: dict[str, np.ndarray] = {}
    for file in files:
        found = load_file(file)
        assert {index["weight_map"][name] for name in found} == {file.name}
        assert sum(value.nbytes for value in found.values()) <= 6000 or len(found) == 1
        values |= found
    assert index["weight_map"].keys() == values.keys() == tensors(VARIANTS["llama3"]).keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in values.values())
    same(tmp_path / "a", tmp_path / "b")


def test_an_imported_checkpoint_loads_in_another_type(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS["smollm2"])
    assert main(["import-weights", "--from", str(tmp_path / "a"), "--to", str(tmp_path / "b")]) == 0
    for dtype in ("float32", "bfloat16"):
        direct, _ = llm.load(tmp_path / "a", dtype=dtype)
        imported, _ = llm.load(tmp_path / "b", dtype=dtype)
        for one, other in zip(jax.tree.leaves(direct), jax.tree.leaves(imported), strict=True):
            assert one.dtype == other.dtype == dtype
            np.testing.assert_array_equal(one, other)


def test_existing_files_are_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS["llama1"])
    there = tmp_path / "there"
    there.mkdir()
    (there / "precious").touch()
    for command in (["import-weights", "--from"], ["export", "--weights"]):
        assert main([*command, str(tmp_path / "a"), "--to", str(there)]) == 2
        assert f"{there} already exists" in capsys.readouterr().err
    assert [entry.name for entry in there.iterdir()] == ["precious"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "there"]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", VARIANTS["llama1"])
    whole = tmp_path / "whole"
    assert main(["import-weights", "--from", str(tmp_path / "a"), "--to", str(whole)]) == 0
    for number, damage in enumerate((no_arrays, other_shape, no_metadata)):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        damage(folder)
        with pytest.raises(UserError, match=r"cannot be read .* import the weights again") as error:
            llm.load(folder)
        assert "\n" not in str(error.value)


def no_arrays(folder: Path) -> None:
    for part in (folder / "weights").rglob("*"):
        if part.is_file() and "metadata" not in part.name.lower():
            part.write_bytes(b"")


def no_metadata(folder: Path) -> None:
    for part in (folder / "weights").rglob("*METADATA*"):
        part.unlink()


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 30}))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_loading_holds_one_tensor_beside_the_arrays() -> None:
    found = memory_of("14", "1024", "2048")
    # The rest is overhead of the allocator; a second copy of a stack of layers would be 58 MB more,
    # one of all arrays 290 MB.
    assert found["above"] < 2 * found["tensor"] + 40_000_000
    assert found["arrays"] > 290_000_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_loading_holds_one_parameter_that_is_not_quantised_yet() -> None:
    found = memory_of("14", "1024", "2048", "bfloat16", "int8")
    assert 140_000_000 < found["arrays"] < 155_000_000
    stack = 14 * 1024 * 2048 * 2
    # A loop over layers copies its input. All weights in bfloat16 would be 290 MB.
    assert found["above"] < 2 * stack + 2 * found["tensor"] + 60_000_000


def memory_of(*arguments: str) -> dict[str, int]:
    """What `import_memory` prints; it runs without the many devices of the tests."""
    command = [sys.executable, "-m", "tests.llm.checkpoints.import_memory", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=environment)
    found: dict[str, int] = json.loads(done.stdout)
    return found
