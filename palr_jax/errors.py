"""The one exception for mistakes that a user can mend."""

import reprlib

# What a message quotes may be of any length; its start says what, its end how to mend it.
_START, _END = 600, 300
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
# The longest `reason`.
_LONGEST = 160


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it. The command line
    prints it without a traceback and exits with code 2. Line breaks and other control characters
    of what it quotes are escaped, and the middle of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(sign if sign.isprintable() else _escaped(sign) for sign in message)
        if len(line) > _START + _END:
            line = f"{line[:_START]} ... {line[-_END:]}"
        super().__init__(line)


def shown(value: object) -> str:
    """A value as it stands in an error: its `repr`, with the middle of a long one left out."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return "a number that is too long to be written out"


def reason(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters.

    Libraries wrap what the file system said, so the error at the bottom is asked.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    strerror = error.strerror if isinstance(error, OSError) else None
    text = strerror or str(error).strip() or repr(error)
    line = text.splitlines()[0]
    # TensorStore names files at length, and says what is wrong behind them.
    return line if len(line) <= _LONGEST else f"{line[:60]} … {line[-97:]}"


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
