"""What the user is told in one line, and ends a command with exit code 2."""


class UserError(Exception):
    """Something the user gave can't be used.

    The message is one line: what, where, what to do. Ends in exit code 2.
    """
