"""Fine-tuning with several processes on one machine gives the result of one process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from palr_jax.cli import main
from palr_jax.errors import UserError
from palr_jax.parallel import processes
from palr_jax.parallel.processes import is_shared
from tests.locations import ROOT
from tests.world import CONFIG, write_world
from tests.xla import flags

TINY = {
    **CONFIG,
    "ranker": {
        "size": {"dim": 32, "num_layers": 1, "num_heads": 8, "num_kv_heads": 8, "ffn_dim": 64,
                 "vocab_size": 512},
        "variants": ["PALR_v2"],
    },
    "finetune": {"steps": 10, "batch_size": 8, "streams": 4, "length": 400, "label_length": 128,
                 "save_every": 5, "log_every": 1, "learning_rate": 0.01},
}  # fmt: skip
PALR = "import sys; from palr_jax.cli import main; sys.exit(main())"


def start(
    folder: Path,
    *arguments: str,
    devices: int = 1,
    script: str = PALR,
    default_fusions: bool = False,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments, "--config", "tiny.yaml"],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": flags(devices, default_fusions), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finetune(
    folder: Path, name: str, count: int, *arguments: str, script: str = PALR
) -> list[subprocess.Popen[str]]:
    """`count` processes with two devices each."""
    return together(folder, "finetune", name, count, *arguments, script=script)


def together(
    folder: Path,
    stage: str,
    name: str,
    count: int,
    *arguments: str,
    devices: int = 2,
    script: str = PALR,
    default_fusions: bool = False,
) -> list[subprocess.Popen[str]]:
    """A stage in `count` processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            folder, stage, "--name", name, "--coordinator", f"localhost:{port}",
            "--processes", str(count), "--process", str(index), *arguments,
            devices=devices, script=script, default_fusions=default_fusions,
        )
        for index in range(count)
    ]  # fmt: skip


def copied(folder: Path, name: str) -> str:
    """A run of that name which has its data and is not tuned."""
    shutil.copytree(folder / "runs/data", folder / "runs" / name)
    return name


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [json.loads(line)["loss"] for line in lines]


def wait(processes: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str]]:
    """Exit codes and outputs."""
    ends = time.monotonic() + seconds
    try:
        return [
            (process.returncode, error)
            for process in processes
            for error in [process.communicate(timeout=ends - time.monotonic())[1]]
        ]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data under several names, and `alone`, a run that one process tuned."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    arguments = ["--config", "tiny.yaml", "--name", "alone"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("prepare", "profile"):
            assert main([stage, *arguments]) == 0
        shutil.copytree("runs/alone", "runs/data")
        assert main(["finetune", *arguments]) == 0
    return folder


def test_four_processes_have_the_losses_of_one(world: Path) -> None:
    mesh = [x for axis in ("data", "fsdp", "tensor") for x in (f"--mesh.{axis}", "2")]
    ended = wait(finetune(world, copied(world, "four"), 4, *mesh))
    assert [code for code, _ in ended] == [0] * 4, ended
    np.testing.assert_allclose(losses(world, "four"), losses(world, "alone"), rtol=1e-4)
    leader, *others = (said for _, said in ended)
    assert "10/10 steps" in leader
    assert not any("steps" in said or "tuning on" in said for said in others)


def logged(folder: Path, name: str) -> int:
    file = folder / "runs" / name / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def reach(processes: list[subprocess.Popen[str]], world: Path, name: str, step: int) -> None:
    """Waits until a step is logged."""
    ends = time.monotonic() + 200
    while logged(world, name) < step:
        assert time.monotonic() < ends
        assert all(process.poll() is None for process in processes), wait(processes)
        time.sleep(0.02)


# Seconds after which a process that is not heard of is lost, in tests that wait for it.
SILENCE = 3
OFTEN = f"from palr_jax.parallel import processes; processes._HEARTBEAT_SECONDS = {SILENCE}; {PALR}"


def ended_in_one_line(ended: list[tuple[int, str]], lost: int, others: str) -> None:
    """All but the one that was lost say who it is, and do not abort."""
    for index, (code, said) in enumerate(ended):
        if index == lost:
            continue
        assert code == 1, said
        (line,) = [line for line in said.splitlines() if line.startswith("palr: ")]
        assert line == said.splitlines()[-1]
        assert f"another process stopped ({others}" in line
        assert "to resume from the newest checkpoint" in line
        assert "Traceback" not in said


def test_when_the_leader_dies_the_others_stop_and_report_it(world: Path) -> None:
    name = copied(world, "dying")
    processes = finetune(world, name, 2, "--mesh.fsdp", "4", "--finetune.steps", "100000")
    reach(processes, world, name, 3)
    processes[0].kill()
    ended_in_one_line(wait(processes, 60), 0, "process 0 disconnected")


def test_a_process_that_hangs_is_lost(world: Path) -> None:
    name = copied(world, "hanging")
    options = ("--mesh.fsdp", "4", "--finetune.steps", "100000")
    processes = finetune(world, name, 2, *options, script=OFTEN)
    reach(processes, world, name, 3)
    processes[1].send_signal(signal.SIGSTOP)
    processes[0].wait(60)
    processes[1].send_signal(signal.SIGCONT)
    ended = wait(processes, 60)
    ended_in_one_line(ended, 1, f"process 1 sent nothing for {SILENCE} s")
    # Once it is resumed, it reports in one line too that the other has ended.
    ended_in_one_line(ended, 0, "process")


def test_sigterm_in_one_process_saves_in_all(world: Path) -> None:
    copied(world, "told")
    processes = finetune(world, "told", 2, "--mesh.fsdp", "4", "--finetune.steps", "100000")
    reach(processes, world, "told", 3)
    processes[1].send_signal(signal.SIGTERM)
    ended = wait(processes, 60)
    assert [code for code, _ in ended] == [143, 143], ended
    assert "stopped by SIGTERM, saved at step" in ended[0][1]
    steps = [
        int(p.name) for p in (world / "runs/told/ranker/PALR_v2").iterdir() if p.name.isdigit()
    ]
    assert f"saved at step {max(steps)}" in ended[0][1]


@pytest.mark.parametrize(
    "environment, has_tpu, expected",
    [
        ({}, False, False),
        ({"SLURM_STEP_NUM_TASKS": "8"}, False, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False, False),
        ({"SLURM_NTASKS": "8"}, False, False),  # in a batch script, before srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, False, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False, False),
        ({}, True, True),  # a TPU VM: JAX asks its network
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, False),
    ],
)
def test_others_are_looked_for_where_there_may_be_some(
    environment: dict[str, str], has_tpu: bool, expected: bool
) -> None:
    assert is_shared(environment, has_tpu) is expected


@pytest.mark.parametrize(
    ("index", "awaited"),
    [(0, "processes 1 to 2 to connect to localhost:{port}"), (1, "process 0 at localhost:{port}")],
)
def test_a_missing_process_is_named_and_the_wait_ends(
    tmp_path: Path, index: int, awaited: str
) -> None:
    script = (
        "import sys; from palr_jax import cli; from palr_jax.parallel import processes\n"
        "processes._WAIT_SECONDS = 2\n"
        "sys.exit(cli.main())"
    )
    write_world(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = ["--coordinator", f"localhost:{port}", "--processes", "3", "--process", str(index)]
    process = subprocess.run(
        [sys.executable, "-c", script, "finetune", "--config", "tiny.yaml", *group],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    first, *_, last = process.stderr.splitlines()
    assert process.returncode == 2
    assert first == f"waiting for {awaited.format(port=port)}"
    assert last.startswith(f"palr: waited 2 s for {awaited.format(port=port)}")


@pytest.mark.parametrize(
    ("group", "complaint"),
    [
        (("localhost", "2", "0"), "--coordinator localhost: give HOST:PORT of process 0"),
        (("localhost:x", "2", "0"), "give HOST:PORT"),
        (("localhost:99999", "2", "0"), "give HOST:PORT"),
        ((":80", "2", "0"), "give HOST:PORT"),
        (("localhost:8476", "2", "2"), "--process 2: with --processes 2 it is from 0 to 1"),
        (("localhost:8476", "2", "-1"), "--process -1"),
    ],
)
def test_a_wrong_group_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    group: tuple[str, str, str],
    complaint: str,
) -> None:
    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ("--coordinator", "--processes", "--process")
    options = [f"{name}={value}" for name, value in zip(names, group, strict=True)]
    assert main(["finetune", "--config", "tiny.yaml", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r"cannot listen at .* name another port"):
            processes.join(f"localhost:{port}", 2, 0)


def test_a_size_in_the_environment_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS is 'many'"):
        is_shared({"SLURM_STEP_NUM_TASKS": "many"}, False)


def test_half_an_address_is_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    assert main(["finetune", "--config", "tiny.yaml", "--process", "1"]) == 2
    assert "--coordinator, --processes and --process belong together" in capsys.readouterr().err
