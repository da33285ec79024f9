"""What a command says when it fails, and how it ends."""

import io
import os
import sys
import traceback
from collections.abc import Callable

from palr_jax import processes
from palr_jax.errors import UserError, reason
from palr_jax.progress import say

# Packages whose errors are those of a network or of the service behind it.
_NETWORK = ("aiohttp", "fsspec", "gcsfs", "google", "requests", "urllib3")


def guarded(work: Callable[[], None]) -> int:
    """Runs a command and returns its exit code; failures that a user can mend are one line.

    0 if it succeeded, 2 for a user's mistake and for what the system refuses (a full disk, missing
    permissions, no network), 1 if another process is gone, 130 for Ctrl-C, 141 if nobody reads the
    output any more, 143 for SIGTERM once everything is saved.

    Raises:
        Exception: anything else, which is a mistake in this package.
    """
    _make_printable()
    try:
        return _guarded(work)
    except KeyboardInterrupt:  # Polars raises it once, and the signal behind it once more
        say("stopped: the same command goes on where it was")
        return 130


def _guarded(work: Callable[[], None]) -> int:
    try:
        try:
            work()
        finally:
            sys.stdout.flush()  # --help ends here too
    except UserError as error:
        _complain(str(error))
        return 2
    except processes.Terminated as told:
        say(f"{told}: the same command goes on from there")
        return 143
    except BrokenPipeError:
        # What is still in memory would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        _complain(f"{_where(error)}{reason(error)}: see to it and run the same command again")
        return 2
    except Exception as error:
        if type(error).__module__.split(".")[0] in _NETWORK:
            _complain(f"the network fails ({reason(error)}): run the same command again")
            return 2
        if not processes.are_many():
            raise
        lost = processes.is_loss(error)
        if not lost:
            traceback.print_exc()
        _complain(processes.failure(lost))
        return 1
    return 0


def _complain(line: str) -> None:
    print(f"palr: {' '.join(line.splitlines())}", file=sys.stderr)


def _where(error: OSError) -> str:
    names = [name for name in (error.filename, error.filename2) if name is not None]
    return f"{' → '.join(map(str, names))}: " if names else ""


def _make_printable() -> None:
    """Lets a terminal that cannot show a letter show its code point instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
