"""Every process of a group has a parent that watches it and reports how it ended.

JAX aborts a process whose peers died, from a C++ thread that Python cannot stop. So a child process
does the work. Its parent has neither JAX nor threads, and so also notices on a busy machine that
the child ended, or that a connection to the others (`parallel/roll_call.py`) closed or fell silent.
It prints one line and ends the child.
"""

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from palr_jax.json_types import JsonObject
from palr_jax.parallel.roll_call import Link

# Exit code of a process that ends because another one died.
_LOST = 1
_TERMINATED = 128 + signal.SIGTERM
# How long a process may run after another has ended. Processes that fail mostly do so by the same
# mistake, and each should report it; those that received SIGTERM need time to save.
_GRACE_SECONDS, _SAVE_SECONDS = 5.0, 60.0
# How long it may take to learn why JAX aborted this process.
_KNOWN_SECONDS = 3.0
_LOOK_SECONDS = 0.1
_BEAT_SECONDS = 1.0
_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HINTS: dict[int, str] = {
    signal.SIGKILL: ", as Linux does when memory runs out",
    signal.SIGABRT: ", as JAX does when another process died",
}
AGAIN = "run the same command on all machines to resume from the newest checkpoint"

# The pipe on which a child sends its exit code to its parent before it ends.
_to_parent: int | None = None


def watched(links: dict[int, Link], index: int | None, silence: float) -> None:
    """Returns in a child process; the parent never returns, and exits as the child does.

    Args:
        links: to the leader, or in the leader to all others.
        index: of this process in its group, if that is known.
        silence: seconds without a message after which a process counts as dead.
    """
    global _to_parent
    reports, own = os.pipe()
    alive, held = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    told: list[int] = []
    before = {one: signal.signal(one, lambda one, _: told.append(one)) for one in _ASKED}
    child = os.fork()
    if child:
        os.close(own)
        os.close(alive)
        _Parent(links, index, silence, child, reports, told).stay()
    for one, handler in before.items():
        signal.signal(one, handler)
    for number in told:
        signal.raise_signal(number)
    for link in links.values():
        link.close()
    os.close(reports)
    os.close(held)
    _to_parent = own
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # the parent never writes, so this returns when it exits
    os._exit(_LOST)


def is_watched() -> bool:
    """Whether this process has a parent, which reports the process that died."""
    return _to_parent is not None


def leave(code: int) -> NoReturn:
    """Ends this process without waiting for the others, which may never connect.

    If it has a parent, the parent ends it once the others know: JAX would abort them before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _to_parent is not None:
        with suppress(OSError):
            os.write(_to_parent, bytes([code]))
        time.sleep(2 * _SAVE_SECONDS)
    os._exit(code)


@dataclass
class _Parent:
    links: dict[int, Link]
    index: int | None
    silence: float
    child: int
    reports: int
    told: list[int]
    # The exit code, once the child has sent it or exited with it; None also if JAX aborted it.
    code: int | None = None
    # Lines to print: how another process ended, and how the child did if it could not print it.
    other: str | None = None
    own: str | None = None
    # When to stop waiting, for the child or for the others.
    ends: float | None = None
    heard: dict[int, float] = field(default_factory=dict)
    # The others that have reported how they end.
    done: set[int] = field(default_factory=set)

    def stay(self) -> NoReturn:
        """Watches until the child has ended and the others know, or another process died."""
        self.heard = dict.fromkeys(self.links, time.monotonic())
        beats = 0.0
        while self.ends is None or time.monotonic() < self.ends:
            while self.told:
                self._pass_on(self.told.pop(0))
            if time.monotonic() >= beats:
                beats = time.monotonic() + min(_BEAT_SECONDS, self.silence / 4)
                self._tell({})
            self._read()
            self._look_at_child()
            if self.code is not None and not self.links.keys() - self.done:
                break
        if self.code is None and self.other is None:
            self._tell_end(_LOST, 0)
        with suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        if line := (self.other or self.own) if self.code is None else self.own:
            print(f"palr: {line}", file=sys.stderr, flush=True)
        os._exit(_LOST if self.code is None else self.code)

    def _pass_on(self, number: int) -> None:
        # A terminal sends Ctrl-C to both.
        if number != signal.SIGINT or not os.isatty(sys.stderr.fileno()):
            with suppress(ProcessLookupError):
                os.kill(self.child, number)

    def _look_at_child(self) -> None:
        if self.code is not None or self.own is not None:
            return
        ready, _, _ = select.select([self.reports], [], [], 0)
        said = os.read(self.reports, 1) if ready else b""
        if said:
            self._ends_with(said[0])
            return
        ended, status = os.waitpid(self.child, os.WNOHANG)
        if not ended:
            return
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            self._ends_with(code)
            return
        name = signal.Signals(-code).name
        self.own = f"{self._me()} was ended by {name}{_HINTS.get(-code, '')}: {AGAIN}"
        if -code == signal.SIGABRT:
            self._wait(0 if self.other else _KNOWN_SECONDS)
        else:
            self._ends_with(128 - code if -code in _ASKED else _LOST)

    def _me(self) -> str:
        return "this process" if self.index is None else f"process {self.index}"

    def _ends_with(self, code: int) -> None:
        self.code, self.ends = code, None
        grace = _SAVE_SECONDS if code == _TERMINATED and self.own is None else _GRACE_SECONDS
        self._tell_end(code, grace)
        self._wait(grace if code else 0)

    def _tell_end(self, code: int, grace: float) -> None:
        why = self.own or f"{self._me()} ended with exit code {code}"
        self._tell({"ended": self.index, "code": code, "grace": grace, "why": why.split(":")[0]})

    def _tell(self, message: JsonObject, but: int | None = None) -> None:
        for one, link in self.links.items():
            if one != but:
                link.send(message)

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        self.ends = ends if self.ends is None else min(ends, self.ends)

    def _read(self) -> None:
        ready, _, _ = select.select([*self.links.values()], [], [], _LOOK_SECONDS)
        now = time.monotonic()
        for one, link in list(self.links.items()):
            messages = link.receive() if link in ready else []
            if link in ready:
                self.heard[one] = now
            for message in messages or ():
                if "ended" in message:
                    self._hear(one, message)
            if messages is None:
                self._lose(one, f"process {one} disconnected")
            elif now - self.heard[one] > self.silence:
                self._lose(one, f"process {one} sent nothing for {self.silence:g} s")

    def _hear(self, one: int, message: JsonObject) -> None:
        if message["ended"] == one:
            self.done.add(one)
        self._tell(message, but=one)
        if not message["code"] or self.code is not None:
            return
        self.other = self.other or _stopped(message["why"])
        self._wait(0 if self.own else message["grace"])

    def _lose(self, one: int, why: str) -> None:
        self.links.pop(one).close()
        if one in self.done:
            return
        self._tell({"ended": one, "code": _LOST, "grace": 0, "why": why})
        if self.code is None:
            self.other = self.other or _stopped(why)
            self._wait(0)


def _stopped(why: str) -> str:
    return f"another process stopped ({why}), so this one stops: see its output; {AGAIN}"
