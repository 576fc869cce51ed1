"""`Sample`: one checked conversation with its media, as every manifest becomes it."""

import re
from itertools import chain
from typing import NamedTuple

IMAGE, AUDIO = "<image>", "<audio>"  # placeholders in a message's content, and special tokens
TASKS = ("text", "qa", "asr")  # how an answer is graded: omni.eval.grading
_TRANSCRIBE = re.compile(r"transcri|what is said|write down|was wird gesagt|speech to text", re.I)


class Sample(NamedTuple):  # a list may hold millions, and a frozen dataclass is thrice as long in the making
    """One conversation, checked: every placeholder has its medium, and some assistant turn has an answer."""

    turns: tuple[str, ...]  # role, content, role, content, ...: `messages` without a tuple each
    images: tuple[str, ...] = ()  # paths, in the order of their placeholders
    audios: tuple[str, ...] = ()
    task: str = "text"  # text, qa or asr: how a held-out answer is graded
    group: str = ""  # held-out samples of a named group are scored apart
    transcript: str = ""  # what the clip says, where the answer is not that
    untrained: tuple[int, ...] = ()  # numbers of the assistant's messages that are read, not trained on
    objects: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...] = ()  # what is where: (words, box)

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """(role, content) of each turn, with role system, user or assistant."""
        return tuple(zip(self.turns[::2], self.turns[1::2], strict=True))

    @property
    def answer(self) -> str:
        """The reference: the last assistant turn."""
        return self.turns[-1]


def flat(messages) -> tuple[str, ...]:
    """(role, content) pairs -> the `turns` of a Sample."""
    return (*chain(*messages),)


def guess_task(messages, images, audios) -> str:
    """The task of a sample that names none: asr where sound is to be written, qa with media, else text."""
    if audios and not images:
        prompt = " ".join(content.replace(AUDIO, "") for role, content in messages if role == "user").strip()
        return "asr" if not prompt or _TRANSCRIBE.search(prompt) else "qa"
    return "qa" if images or audios else "text"
