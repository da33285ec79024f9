"""Error messages and exit codes of commands."""

import io
import os
import sys
import traceback
from collections.abc import Callable

from palr_jax.errors import UserError, reason
from palr_jax.io.progress import say
from palr_jax.parallel import processes

# Packages whose exceptions come from the network or a remote service.
_NETWORK = ("aiohttp", "fsspec", "gcsfs", "google", "requests", "urllib3")


def guarded(work: Callable[[], None]) -> int:
    """Runs a command and returns its exit code; prints errors that the user can fix as one line.

    0 on success, 2 for a `UserError` and for system errors (a full disk, missing permissions, no
    network), 1 if another process died, 130 for Ctrl-C, 141 if the reader of the output is gone,
    143 for SIGTERM after everything is saved.

    Raises:
        Exception: any other exception, which is a bug in this package.
    """
    _make_printable()
    try:
        return _guarded(work)
    except KeyboardInterrupt:  # around _guarded, because Polars may cause a second one in a handler
        say("stopped: run the same command again to resume")
        return 130


def _guarded(work: Callable[[], None]) -> int:
    try:
        try:
            work()
        finally:
            sys.stdout.flush()  # also after --help
    except UserError as error:
        _complain(str(error))
        return 2
    except processes.Terminated as terminated:
        say(f"{terminated}: run the same command again to resume")
        return 143
    except BrokenPipeError:
        # Python flushes at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        _complain(f"{_where(error)}{reason(error)}: fix that and run the same command again")
        return 2
    except Exception as error:
        if type(error).__module__.split(".")[0] in _NETWORK:
            _complain(f"network error ({reason(error)}): run the same command again")
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
    """Makes output escape characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
