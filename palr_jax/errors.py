"""The one exception for mistakes that a user can mend."""

# What a message quotes may be of any length; its start says what, its end how to mend it.
_START, _END = 600, 300


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


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
