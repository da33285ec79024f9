"""Checks of what is given to the Python API: a wrong kind is one line, and not a wrong result."""

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import SupportsIndex

from palr_jax.errors import UserError


def list_of(value: object, what: str) -> list[object]:
    """The entries of a list, a tuple, an array or another series with an order.

    Raises:
        UserError: it is a text, which Python would take for a list of letters, or none of these.
    """
    is_one = isinstance(value, str | bytes | bytearray | Mapping | Set)
    if is_one or not isinstance(value, Iterable):
        raise UserError(f"{what}: a list is expected, not {_shown(value)}")
    try:
        return list(value)
    except TypeError:  # a zero-dimensional array raises only here
        raise UserError(f"{what}: a list is expected, not {_shown(value)}") from None


def texts_of(value: object, what: str) -> list[str]:
    """A list of texts, titles for example.

    Raises:
        UserError: it is no list, or an entry is no text.
    """
    entries = list_of(value, what)
    return [text_of(entry, f"{what}, entry {number}") for number, entry in enumerate(entries, 1)]


def lists_of_texts(value: object, what: str) -> list[list[str]]:
    """A list of lists of texts, one for each user for example.

    Raises:
        UserError: it is none.
    """
    rows = list_of(value, what)
    return [texts_of(row, f"{what}, list {number}") for number, row in enumerate(rows, 1)]


def text_of(value: object, what: str) -> str:
    """A text.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str):
        raise UserError(f"{what}: a text is expected, not {_shown(value)}")
    return value


def whole_number(value: object, what: str, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        UserError: it is none.
    """
    number = None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with suppress(TypeError):  # an array of several numbers, or of real ones, raises only here
            number = operator.index(value)
    if number is None or number < least:
        raise UserError(f"{what}: a whole number from {least} on is expected, not {_shown(value)}")
    return number


def flag(value: object, what: str) -> bool:
    """True or False.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{what}: True or False is expected, not {_shown(value)}")
    return value


def choice(value: object, what: str, choices: Sequence[str]) -> str:
    """One of some texts.

    Raises:
        UserError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        names = " or ".join(map(repr, choices))
        raise UserError(f"{what}: {names} is expected, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """A value in an error, whatever its length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
