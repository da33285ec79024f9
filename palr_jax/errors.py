"""The exception for errors that the user can fix."""

import reprlib

# A message may quote long values. Its start says what is wrong, its end how to fix it, so cut the
# middle.
_START, _END = 600, 300
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
# Maximum length of `reason`.
_LONGEST = 160


class UserError(Exception):
    """An error that the user can fix.

    The message is one line that says what is wrong, where, and how to fix it. The command line
    prints it without a traceback and exits with code 2. Control characters, including line breaks,
    are escaped, and the middle of a very long message is cut.
    """

    def __init__(self, message: str) -> None:
        line = "".join(sign if sign.isprintable() else _escaped(sign) for sign in message)
        if len(line) > _START + _END:
            line = f"{line[:_START]} ... {line[-_END:]}"
        super().__init__(line)


def shown(value: object) -> str:
    """A value for an error message: its `repr`, with the middle of a long one cut."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python formats no integer of more than 4,300 digits
        return "a number that is too long to print"


def reason(error: BaseException) -> str:
    """The message of an error in one line of at most 160 characters.

    Libraries wrap the errors of the file system, so this uses the innermost cause.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    strerror = error.strerror if isinstance(error, OSError) else None
    text = strerror or str(error).strip() or repr(error)
    line = text.splitlines()[0]
    # TensorStore puts long file names before the cause, so keep the end.
    return line if len(line) <= _LONGEST else f"{line[:60]} … {line[-97:]}"


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
