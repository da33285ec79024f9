"""Converts failures of the package `tokenizers`, which is written in Rust, to one-line errors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from palr_jax.errors import UserError


@contextmanager
def faults_refused(what: str, silent: bool = False) -> Iterator[None]:
    """Converts any exception of the package to a `UserError` that begins with `what`.

    A Rust panic is not an `Exception`, and prints a long report to standard error; `silent`
    discards what the block writes to standard error.

    Raises:
        UserError: the block raised or panicked.
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
    if sys.stderr is None:  # closed: its file descriptor may be in use by another file
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
