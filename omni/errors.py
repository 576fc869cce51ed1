"""The two errors whose message is for the person: what they gave, and a medium that can't be used."""


class UserError(Exception):
    """Something the user gave can't be used: one line on what, where, what to do. Ends in exit code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class MediaError(Exception):
    """A medium that can't be used. The message is the reason, without the path."""
