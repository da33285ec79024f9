"""The one exception for mistakes that a user can mend."""

import re
import reprlib
from typing import Any

_LONGEST = 1_000
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it. The command line
    prints it without a traceback and exits with code 2. Control characters in it are replaced by
    spaces, and of a message over 1,000 characters the middle is left out.
    """

    def __init__(self, message: str) -> None:
        line = _BREAKS.sub(" ", message)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
        super().__init__(line)


def shown(value: Any) -> str:
    """A value as it stands in an error: its `repr`, with the middle of a long one left out."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return "a number that is too long to be written out"
