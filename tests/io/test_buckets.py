"""Runs, weights and data in a bucket, on a server with the API of Google Cloud Storage."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from flax import nnx
from gcp_storage_emulator.server import create_server

from palr_jax import Recommender, llm
from palr_jax.cli import main
from palr_jax.data.config import DataConfig
from palr_jax.data.movielens import read_dat_archive
from palr_jax.data.reading import numbered_lines
from palr_jax.data.table import read_table
from palr_jax.errors import UserError
from palr_jax.io.files import append_text, creating, read_arrays, replacing, write_arrays
from palr_jax.io.paths import delete, in_bucket, path_of
from palr_jax.io.stamps import files_in, is_whole, retake, take
from tests.data.conftest import log_of
from tests.locations import ROOT
from tests.test_stage_log import World
from tests.xla import flags


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("localhost", 0, in_memory=True, default_bucket="palr")
    server.start()
    address = f"http://localhost:{server._api._httpd.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "palr")
        yield "gs://palr"
    server.stop()


@pytest.fixture(scope="module")
def run(bucket: str, world: Path) -> Path:
    """The run of `world`, repeated in the bucket; its data are read from the bucket as well."""
    upload(world / "i.csv", f"{bucket}/data/i.csv")
    upload(world / "t.csv", f"{bucket}/data/t.csv")
    upload(world / "tiny.yaml", f"{bucket}/tiny.yaml")
    assert main(["run", *options(bucket)]) == 0
    return path_of(f"{bucket}/runs/tiny")


def options(bucket: str) -> list[str]:
    data = ["--data.interactions", f"{bucket}/data/i.csv", "--data.items", f"{bucket}/data/t.csv"]
    return ["--config", f"{bucket}/tiny.yaml", "--runs", f"{bucket}/runs", *data]


def upload(path: Path, to: str) -> None:
    with replacing(path_of(to)) as temporary:
        shutil.copyfile(path, temporary)


def test_a_run_in_a_bucket_has_the_results_of_one_on_disk(run: Path, world: Path) -> None:
    here = world / "runs/tiny"
    there, results = (json.loads((path / "results.json").read_text()) for path in (run, here))
    assert there["rows"] == results["rows"]
    # Objects cannot be appended to, but lines of metrics are added one by one.
    there, steps = (
        [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (run, here)
    )
    assert there == steps
    assert any((run / "tensorboard" / "PALR_v2").iterdir())


def test_a_run_in_a_bucket_goes_on(
    run: Path, bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = {path: (run / path).read_bytes() for path in ("metrics.jsonl", "results.json")}
    assert main(["run", *options(bucket)]) == 0
    assert "finetune: done before, skipped" in capfd.readouterr().err
    # The newest checkpoint is lost: training resumes from the previous one.
    stages = json.loads((run / "stages.json").read_text())
    stages["finetune"]["done"] = stages["evaluate"]["done"] = False
    (run / "stages.json").write_text(json.dumps(stages))
    delete(run / "ranker" / "PALR_v2" / "4")
    assert main(["run", *options(bucket)]) == 0
    assert {path.name for path in (run / "ranker" / "PALR_v2").iterdir()} >= {"2", "4"}
    losses = [
        [json.loads(line)["loss"] for line in text.splitlines()]
        for text in (kept["metrics.jsonl"].decode(), (run / "metrics.jsonl").read_text())
    ]
    assert losses[0] == losses[1]
    rows = json.loads(kept["results.json"])["rows"]
    assert json.loads((run / "results.json").read_text())["rows"] == rows


def test_two_processes_tune_in_a_bucket(run: Path, bucket: str, tmp_path: Path) -> None:
    alone = (run / "metrics.jsonl").read_text()
    stages = json.loads((run / "stages.json").read_text())
    stages["finetune"]["done"] = False
    (run / "stages.json").write_text(json.dumps(stages))
    for path in ("metrics.jsonl", "ranker/PALR_v1", "ranker/PALR_v2"):
        delete(run / path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = "import sys; from palr_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "finetune", *options(bucket), "--mesh.data", "2"]
    command += ["--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags(1)}
    pair = [
        subprocess.Popen([*command, process], env=environment, cwd=tmp_path) for process in "01"
    ]
    assert [process.wait(timeout=240) for process in pair] == [0, 0]
    losses = [
        [json.loads(line)["loss"] for line in text.splitlines()]
        for text in (alone, (run / "metrics.jsonl").read_text())
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_run_in_a_bucket_recommends(run: Path, bucket: str, world: Path) -> None:
    there, here = Recommender.load(str(run)), Recommender.load(world / "runs/tiny")
    history = here.history_of("u3")
    (found,), (expected,) = (one.recommend([history]) for one in (there, here))
    # Two processes have tuned the ranker in the bucket again: sums differ by rounding.
    assert [item.title for item in found] == [item.title for item in expected]
    scores = [[item.score for item in slate] for slate in (found, expected)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    output = f"{bucket}/slates.parquet"
    assert main(["recommend", "--run", str(run), "--users", "all", "--output", output]) == 0
    assert path_of(output).read_bytes()[:4] == b"PAR1"
    assert not path_of(f"{output}.parts").exists()


def test_weights_in_a_bucket_are_those_on_disk(run: Path, bucket: str, tmp_path: Path) -> None:
    exported, imported = f"{bucket}/exported", f"{bucket}/weights"
    assert main(["export", "--run", str(run), "--to", exported]) == 0
    assert main(["import-weights", "--from", exported, "--to", imported]) == 0
    assert main(["export", "--weights", imported, "--to", str(tmp_path / "disk")]) == 0
    models = [llm.load(path)[0] for path in (exported, imported, tmp_path / "disk")]
    for model in models[1:]:
        same = jax.tree.map(np.array_equal, nnx.state(models[0]), nnx.state(model))
        assert all(jax.tree.leaves(same))


def test_existing_files_are_not_overwritten(
    run: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--run", str(run), "--to", f"{bucket}/data"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert {path.name for path in path_of(f"{bucket}/data").iterdir()} == {"i.csv", "t.csv"}


def test_nothing_is_half_written(bucket: str) -> None:
    file, folder = path_of(f"{bucket}/half/file"), path_of(f"{bucket}/half/folder")

    def fail(path: Path) -> None:
        path.write_text("a part")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        fail(temporary)
    with pytest.raises(ZeroDivisionError), creating(folder) as temporary:
        fail(temporary / "first")
    assert not file.exists()
    assert not folder.exists()


def test_files_in_a_bucket_read_as_those_on_disk(bucket: str, tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"a": np.arange(5), "b": np.ones((2, 3), np.float32)}
    for path in (path_of(f"{bucket}/some/arrays.npz"), tmp_path / "arrays.npz"):
        write_arrays(path, **arrays)
        found = read_arrays(path)
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    for path in (path_of(f"{bucket}/some/lines"), tmp_path / "lines"):
        append_text(path, "eins\n")
        append_text(path, "zwei ü\n")
        assert path.read_text(encoding="utf-8") == "eins\nzwei ü\n"
        assert [text for _, text in numbered_lines(path, "mend it")] == ["eins\n", "zwei ü\n"]


def test_what_another_process_writes_is_seen_at_once(bucket: str) -> None:
    folder = path_of(f"{bucket}/shared")
    (folder / "first").write_text("1")
    assert [path.name for path in folder.iterdir()] == ["first"]
    other = fsspec.filesystem("gcs", skip_instance_cache=True)
    other.pipe_file(f"{folder}/second", b"2")
    assert {path.name for path in folder.iterdir()} == {"first", "second"}
    assert (folder / "second").exists()


def test_an_archive_in_a_bucket_is_read(bucket: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::7::5::978300760\n2::7::3::978302109\n")
        archive.writestr("ml-1m/movies.dat", "7::Heat (1995)::Action|Crime\n")
    upload(tmp_path / "ml-1m.zip", f"{bucket}/ml-1m.zip")
    tables = read_dat_archive(DataConfig(source="ml-1m", path=f"{bucket}/ml-1m.zip"))
    assert log_of(tables)["user"].to_list() == ["1", "2"]
    assert tables.items["title"].to_list() == ["Heat (1995)"]


def test_a_file_of_a_bucket_is_whole_while_it_has_its_size(bucket: str) -> None:
    file = path_of(f"{bucket}/stamps/a")
    file.write_text("rows")
    stamp = take(file)
    assert is_whole(file, stamp)
    file.write_text("other rows")
    assert not is_whole(file, stamp)
    file.unlink()
    assert not is_whole(file, stamp)
    (file / "below").write_text("")
    assert not is_whole(file, stamp._replace(size=0))


def test_all_files_of_a_folder_in_a_bucket_are_found(bucket: str) -> None:
    folder = path_of(f"{bucket}/found")
    for name in ("9/x", "10/x", "10/.hidden", ".hidden/y", "z"):
        (folder / name).write_text("rows")
    for name in ("found0", "found too/x"):  # their names only begin like that of the folder
        path_of(f"{bucket}/{name}").write_text("rows")
    found = files_in(folder)
    assert [f"{file.relative_to(folder)}" for file in found] == ["10/x", "9/x", "z"]
    assert files_in(found[0]) == found[:1]
    assert files_in(folder / "missing") == []


@pytest.mark.parametrize("name", ["log", "log/part-*.csv", "l?g/*"])
def test_parts_in_a_bucket_are_read(bucket: str, tmp_path: Path, name: str) -> None:
    for part, rows in (("log/part-2.csv", "b,7,1\n"), ("log/part-1.csv", "a,7,1\n")):
        path_of(f"{bucket}/parts/{part}").write_text(f"user,item,timestamp\n{rows}")
    path_of(f"{bucket}/parts/log/_SUCCESS").write_text("")
    path_of(f"{bucket}/parts/items.csv").write_text("item,title\n7,Heat\n")
    config = DataConfig(
        source="table",
        interactions=f"{bucket}/parts/{name}",
        items=f"{bucket}/parts/items.csv",
    )
    assert log_of(read_table(config))["user"].to_list() == ["a", "b"]
    listed = path_of(f"{bucket}/parts/{name}")
    stamp = take(listed)
    assert retake(listed, stamp) == stamp
    path_of(f"{bucket}/parts/log/part-0.csv").write_text("user,item,timestamp\n")
    assert retake(listed, stamp).content != stamp.content
    delete(path_of(f"{bucket}/parts"))
    with pytest.raises(UserError, match=r"matches no files|is missing"):
        read_table(config)


def test_mistakes_are_told_in_a_line(bucket: str) -> None:
    assert in_bucket(path_of(f"{bucket}/x"))
    assert not in_bucket(path_of("x"))
    with pytest.raises(UserError, match="neither a path nor of the form gs://BUCKET"):
        path_of("https://somewhere/x")
    with pytest.raises(UserError, match="gs://nowhere cannot be reached"):
        path_of("gs://nowhere/x")
    upload(Path(__file__), f"{bucket}/model.gguf")
    with pytest.raises(UserError, match="only be read from disk"):
        llm.load(f"{bucket}/model.gguf")


def test_stages_in_a_bucket_are_made_again_when_they_must(bucket: str) -> None:
    """Objects are not read to compare them, only their sizes and times."""
    world = World(path_of(f"{bucket}/stages"))
    assert world.go() == ["prepare", "finetune"]
    assert world.go() == []
    time.sleep(1.1)  # times are in seconds
    world.data.write_text("swor")
    assert world.go() == ["prepare", "finetune"]
    (world.weights / "config.json").write_text("other")
    assert world.go() == ["finetune"]
    (world.run / "split").write_text("cut")
    assert world.go() == ["prepare"]
    (world.run / "ranker/2/params").unlink()
    assert world.go() == ["finetune"]
    assert world.go() == []


def test_a_service_out_of_reach_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("localhost", 0))  # and does not listen
        port = nobody.getsockname()[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        start = time.monotonic()
        with pytest.raises(UserError, match=r"gs://lonely cannot be reached \(Connection refused"):
            path_of("gs://lonely/runs")
        assert time.monotonic() - start < 20
