"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from palr_jax.parallel.processes import is_leader

_LINE_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Reports `amount` units of finished work; `note` (such as a loss) is shown after the rate."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...


def say(line: str) -> None:
    """Prints one line to standard error, separate from results; only in the leader process."""
    if is_leader():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows the progress of `total` units of work, of which `done` are already finished.

    On a terminal this is a bar with the rate and the remaining time; elsewhere, a line with the
    same figures at most every ten seconds, and one at the end.
    """
    show = _bar if is_leader() and Console(stderr=True).is_terminal else _lines
    with show(label, total, unit, done) as advance:
        yield advance


def in_passes(advance: Advance, passes: int) -> Advance:
    """An `Advance` for several passes over the same units, each of which is reported once.

    Units are reported evenly over all passes, as if a pass did the same part of every unit.
    """
    done = 0

    def advance_pass(amount: int = 1, note: str = "") -> None:
        nonlocal done
        done += amount
        advance(done // passes - (done - amount) // passes, note)

    return advance_pass


@contextmanager
def _bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start, finished = time.monotonic(), done
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, completed=done, rate="", note="")

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal finished
            finished += amount
            rate = (finished - done) / max(time.monotonic() - start, 1e-9)
            bars.update(task, completed=finished, rate=f"{rate:.1f} {unit}/s", note=note)

        yield advance


@contextmanager
def _lines(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    start = shown = time.monotonic()
    finished = done

    def advance(amount: int = 1, note: str = "") -> None:
        nonlocal finished, shown
        finished += amount
        now = time.monotonic()
        if now - shown < _LINE_EVERY_SECONDS and finished < total:
            return
        shown = now
        rate = (finished - done) / max(now - start, 1e-9)
        left = (total - finished) / max(rate, 1e-9)
        tail = f"  {note}" if note else ""
        say(f"{label}: {finished}/{total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left{tail}")

    yield advance
