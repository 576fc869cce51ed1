"""`Sample`: one checked conversation with its media. Every format of manifest is read into samples."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

IMAGE, AUDIO = "<image>", "<audio>"  # placeholders in a message's content, and special tokens


class Sample(NamedTuple):  # three times as fast to make as a frozen dataclass, and there may be millions
    """One checked conversation: every placeholder has its medium, and at least one answer is trained on."""

    turns: tuple[str, ...]  # role, content, role, content, ...: smaller than a tuple for each message
    images: tuple[str, ...] = ()  # paths, in the order of their placeholders
    audios: tuple[str, ...] = ()
    task: str = "text"  # one of omni.base.config_file.TASKS
    group: str = ""  # held-out samples of a named group are scored separately
    transcript: str = ""  # the words spoken in the clip, if the answer is something else
    untrained: tuple[int, ...] = ()  # indices of the assistant messages that are not trained on
    objects: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...] = ()  # in an image: (words, box)
    continues: bool = False  # a piece of a longer plain text: where it ends the text does not

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """(role, content) of each turn; a role is system, user or assistant."""
        return tuple(zip(self.turns[::2], self.turns[1::2], strict=True))

    @property
    def answer(self) -> str:
        """The reference: the last assistant turn."""
        return self.turns[-1]


def flat(messages) -> tuple[str, ...]:
    """(role, content) pairs -> the `turns` of a Sample."""
    return (*chain(*messages),)


def spread(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """`count` of the samples, evenly spaced, since a source may be sorted; all of them for None."""
    if count is None or count >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // count] for i in range(count)]
