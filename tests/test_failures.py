"""Exit codes and messages of commands that fail."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palr_jax.errors import UserError
from palr_jax.failures import guarded
from palr_jax.parallel.processes import Terminated
from tests.locations import ROOT

CODES = sorted({*errno.errorcode} - {errno.EPIPE, errno.ESHUTDOWN})  # nobody reads any more


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("code", CODES)
def test_whatever_the_system_refuses_is_one_line(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = guarded(failing(OSError(code, os.strerror(code), "some/file")))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended == 2
    assert line.startswith(f"palr: some/file: {os.strerror(code)}")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("one\ntwo"), 2, r"palr: one\ntwo"),
        (OSError("12 requested and 5 written"), 2, "palr: 12 requested and 5 written"),
        (TimeoutError(), 2, "palr: TimeoutError()"),
        (KeyboardInterrupt(), 130, "run the same command again to resume"),
        (Terminated("stopped by SIGTERM"), 143, "stopped by SIGTERM: run the same command again"),
    ],
)
def test_every_end_has_its_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(failing(error)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_second_ctrl_c_behind_the_first_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise KeyboardInterrupt

    assert guarded(work) == 130


def test_a_mistake_of_the_package_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: print(1 / 0))


def test_errors_of_a_network_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    kind = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})
    assert guarded(failing(kind("503"))) == 2
    assert "palr: network error (503)" in capsys.readouterr().err


def palr(world: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    script = "import sys; from palr_jax.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=world,
        env={**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_closed_output_pipe_is_no_error(world: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = palr(world, "recommend", "--run", "runs/tiny", "--user", "u3", stdout=write)
    os.close(write)
    error = process.communicate()[1]
    assert process.returncode == 141
    assert "Traceback" not in error
    assert "BrokenPipe" not in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_output_has_no_room(world: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = palr(world, "recommend", "--run", "runs/tiny", "--user", "u3", stdout=full)
        error = process.communicate()[1]
    assert process.returncode == 2
    assert [line for line in error.splitlines() if "palr: No space left on device" in line]
    assert "Traceback" not in error


def test_a_terminal_that_knows_ascii_alone(world: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    script = ["--run", "runs/tiny", "--history", "no such titl\u00e9"]
    process = palr(world, "recommend", *script, stdout=subprocess.PIPE, env=ascii_only)
    assert process.communicate()[1].splitlines()[-1].startswith("palr: no single item is titled")
    assert process.returncode == 2
    process = palr(world, "recommend", "--help", stdout=subprocess.PIPE, env=ascii_only)
    process.communicate()
    assert process.returncode == 0
    own = ["--run", "runs/tiny", "--user", "u3", "--json"]
    process = palr(world, "recommend", *own, stdout=subprocess.PIPE, env=ascii_only)
    assert len([json.loads(line) for line in process.communicate()[0].splitlines()]) == 10


@pytest.mark.parametrize("runs", ["/proc/x", "/dev/null/x", "x" * 300, "tiny.yaml"])
def test_paths_that_cannot_be_written_to(
    world: Path, runs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from palr_jax.cli import main  # noqa: PLC0415

    monkeypatch.chdir(world)
    assert main(["prepare", "--config", "tiny.yaml", "--runs", runs]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("palr: ")]
    assert runs in line
