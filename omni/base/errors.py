"""The two errors whose message is written for the user."""


class UserError(Exception):
    """Something the user gave is unusable. The message is one line: what, where, what to do. Exit code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class MediaError(Exception):
    """An image or clip can't be used. The message is the reason, without the path."""
