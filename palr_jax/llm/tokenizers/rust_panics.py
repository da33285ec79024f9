"""Faults of the package `tokenizers`, which is written in Rust, as errors of one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from palr_jax.errors import UserError


@contextmanager
def faults_refused(what: str, silent: bool = False) -> Iterator[None]:
    """Turns whatever the package raises into a `UserError`; `what` is the first half of its line.

    A panic of Rust is no `Exception`, and prints a report of many lines to standard error; with
    `silent` nothing that the block writes there is seen.

    Raises:
        UserError: the block has raised, or panicked.
    """
    try:
        with _no_standard_error() if silent else nullcontext():
            yield
    except UserError:
        raise
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"
        if not panicked and not isinstance(error, Exception):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} ({reason}): use another one") from None


@contextmanager
def _no_standard_error() -> Iterator[None]:
    if sys.stderr is None:  # closed: its number may be that of another file
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
