"""One run at a time in a folder."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from palr_jax.errors import UserError
from palr_jax.io import lock
from palr_jax.io.lock import locked
from tests.locations import ROOT

HOLD = (
    "import sys; from pathlib import Path; from palr_jax.io.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_the_first(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    try:
        who = f"process {process.pid} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"is in use by {who}"), locked(tmp_path / "run"):
            pytest.fail("there are two")
    finally:
        process.communicate()
    with locked(tmp_path / "run"):
        pass


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().split()[1] == str(os.getpid())


def test_a_lock_file_alone_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with locked(tmp_path):
        pass
    assert "this file system has no locks; start only one run at a time" in capsys.readouterr().err
