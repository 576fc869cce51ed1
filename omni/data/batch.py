"""`Sample` and `Batch`: the only contract between data and model.

The letters of the shapes, everywhere in this project: B samples of a batch, T tokens (right-padded), D width
of the Thinker, V vocabulary, H heads, M pictures of a batch, P patch features a picture, N clips of a batch,
F mel frames (padded), S audio features (padded).
"""

from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import NamedTuple

import torch

IGNORE = -100  # label of a position that is not trained on
IMAGE, AUDIO = "<image>", "<audio>"  # placeholders in a message's content, and special tokens


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


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens with next-token labels, and all samples' media in the order of their placeholders.

    Either raw media (pixels, mels) or their frozen features are given, never both; without media all are
    None.
    """

    input_ids: torch.Tensor  # (B, T) int64; an image placeholder repeats once a feature, so does an audio one
    labels: torch.Tensor  # (B, T) int64; labels[b, t] is the token after input_ids[b, t], or IGNORE
    lengths: torch.Tensor  # (B,) tokens that are not padding
    pixels: torch.Tensor | None = None  # (M, 3, image_size, image_size) float
    mels: torch.Tensor | None = None  # (N, F, MELS) float, zero beyond a clip's frames
    mel_lengths: torch.Tensor | None = None  # (N,) mel frames a clip
    image_features: torch.Tensor | None = None  # (M, P, vision width)
    audio_features: torch.Tensor | None = None  # (sum of the clips' S, audio width), end to end

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None}
        return replace(self, **moved)
