"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it. The command line
    prints it without a traceback and exits with code 2.
    """
