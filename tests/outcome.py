"""The two allowed outcomes of a call."""

from collections.abc import Callable
from typing import Any

from palr_jax.errors import UserError


def result_or_line(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, or the message of its UserError, which is one short line."""
    try:
        return function(*arguments)
    except UserError as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    assert len(line) <= 1_003
    line.encode()
    return line
