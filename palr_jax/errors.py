"""The one exception for mistakes that a user can mend."""

_LONGEST = 160


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it. The command line
    prints it without a traceback and exits with code 2.
    """


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
