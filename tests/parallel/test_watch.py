"""Whatever happens to one of several processes, the others say in one line which one it was.

The work here is a sleep, so that nothing of JAX decides who is first. `test_processes.py` does the
same with a training.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.locations import ROOT

# Two seconds of silence are a loss; the child says that it is there, and what it then does.
SCRIPT = """
import os, sys, time
from palr_jax.parallel.roll_call import meet
from palr_jax.parallel.watch import leave, watched
port, count, index, then = sys.argv[1:]
links = meet("localhost", int(port), int(index), int(count), 60)
watched(links, int(index), 2)
print(os.getpid(), flush=True)
exec(then)
"""
SLEEP = "time.sleep(100)"


def launch(*deeds: str) -> list[subprocess.Popen[str]]:
    """One process for each of the deeds, whose children do them once all are connected."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(len(deeds)), str(index), deed],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, deed in enumerate(deeds)
    ]


def started(processes: list[subprocess.Popen[str]]) -> list[int]:
    """The ids of the children, once all run."""
    return [int(process.stdout.readline()) for process in processes if process.stdout]


def ends(
    processes: list[subprocess.Popen[str]], but: int | None = None
) -> dict[int, tuple[int, str]]:
    """By index, the exit code and the last lines of all processes, except `but`."""
    ended = {}
    try:
        for index, process in enumerate(processes):
            if index != but:
                lines = process.communicate(timeout=60)[1].splitlines()
                said = [line for line in lines if not line.startswith(("waiting", "connected to"))]
                ended[index] = (process.returncode, "\n".join(said))
    finally:
        for process in processes:
            process.kill()
    return ended


def is_gone(child: int) -> bool:
    """Whether a process ends within seconds."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def assert_lost(ended: dict[int, tuple[int, str]], why: str) -> None:
    for code, said in ended.values():
        assert code == 1
        assert said.startswith(f"palr: another process stopped ({why}), so this one stops")
        assert "to resume from the newest checkpoint" in said
        assert "\n" not in said


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_is_named(count: int, lost: int) -> None:
    processes = launch(*[SLEEP] * count)
    children = started(processes)
    processes[lost].kill()
    assert_lost(ends(processes, but=lost), f"process {lost} disconnected")
    assert all(map(is_gone, children))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_hangs_is_named(lost: int) -> None:
    processes = launch(SLEEP, SLEEP, SLEEP)
    children = started(processes)
    processes[lost].send_signal(signal.SIGSTOP)
    others = {i: process for i, process in enumerate(processes) if i != lost}
    for process in others.values():
        process.wait(60)
    processes[lost].send_signal(signal.SIGCONT)
    ended = ends(processes)
    assert_lost({i: ended[i] for i in others}, f"process {lost} sent nothing for 2 s")
    code, said = ended[lost]  # it goes on, and finds that it is alone
    assert code == 1
    assert "palr: another process stopped" in said
    assert all(map(is_gone, children))


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGABRT, 1), (signal.SIGSEGV, 1), (signal.SIGKILL, 1), (signal.SIGTERM, 143)],
)
def test_a_child_that_a_signal_ends_is_named_everywhere(lost: int, number: int, code: int) -> None:
    """As JAX and drivers abort it, and as Linux kills what needs too much memory."""
    processes = launch(SLEEP, SLEEP, SLEEP)
    os.kill(started(processes)[lost], number)
    ended = ends(processes)
    own_code, said = ended.pop(lost)
    name = signal.Signals(number).name
    assert own_code == code
    assert said.startswith(f"palr: process {lost} was ended by {name}")
    for _, said in ended.values():
        assert f"palr: another process stopped (process {lost} was ended by {name}" in said


def test_an_abort_that_another_loss_brings_about_is_put_down_to_that() -> None:
    """JAX aborts a process in the moment in which another is lost, perhaps before it is known."""
    processes = launch(SLEEP, SLEEP, SLEEP)
    children = started(processes)
    os.kill(children[2], signal.SIGABRT)
    processes[1].kill()
    assert_lost(ends(processes, but=1), "process 1 disconnected")


@pytest.mark.parametrize("failing", [0, 1])
def test_all_may_end_by_one_mistake_and_say_it(failing: int) -> None:
    says = "print('palr: {}', file=sys.stderr); time.sleep({}); leave(2)"
    deeds = [says.format("the same", 0 if index == failing else 1) for index in range(3)]
    ended = ends(launch(*deeds))
    assert ended == dict.fromkeys(range(3), (2, "palr: the same"))


def test_a_mistake_of_one_ends_the_others() -> None:
    ended = ends(launch(SLEEP, "print('palr: mine', file=sys.stderr); leave(2)", SLEEP))
    assert ended.pop(1) == (2, "palr: mine")
    assert_lost(ended, "process 1 ended with exit code 2")


def test_a_stopped_process_waits_for_those_that_still_save() -> None:
    ended = ends(launch("leave(143)", "time.sleep(7); leave(143)"))
    assert ended == {0: (143, ""), 1: (143, "")}


def test_processes_that_are_done_end_when_they_are() -> None:
    ended = ends(launch("pass", "time.sleep(4)", "time.sleep(1)"))
    assert ended == dict.fromkeys(range(3), (0, ""))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_child(number: signal.Signals) -> None:
    told = (
        "import signal\n"
        "def tell(number, frame): print('told', number, file=sys.stderr); leave(7)\n"
        f"signal.signal({number}, tell); print(flush=True); {SLEEP}"
    )
    processes = launch(told, SLEEP)
    started(processes)
    assert processes[0].stdout
    processes[0].stdout.readline()
    processes[0].send_signal(number)
    assert ends(processes)[0] == (7, f"told {number.value}")
