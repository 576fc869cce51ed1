"""Samples -> a right-padded `Batch`."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from omni.data.batch import IGNORE, Batch
from omni.data.media_reader import MediaReader
from omni.data.sample import Sample
from omni.data.tokenizer import ASSISTANT, Tokenizer


def pad_mels(mels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (F, MELS) -> (N, longest F, MELS) with zeros behind, and their lengths (N,)."""
    return pad_sequence(list(mels), batch_first=True), torch.tensor([len(m) for m in mels])


class Collator:
    """Tokenises conversations, fetches their media (frozen if `features` has them) and pads to the right.

    `image_tokens` is the number of the Thinker's tokens a picture, `audio_tokens` maps mel frames to tokens.
    """

    def __init__(self, tokenizer: Tokenizer, reader: MediaReader, image_tokens: int, audio_tokens,
                 max_length: int, features=None):
        self.tokenizer, self.reader, self.features = tokenizer, reader, features
        self.image_tokens, self.audio_tokens, self.max_length = image_tokens, audio_tokens, max_length

    def __call__(self, samples: Sequence[Sample], takes: Sequence[int] | None = None,
                 prompt_only: bool = False) -> Batch:
        """`takes` (B,) names each sample's take of its media; `prompt_only` leaves the last answer off."""
        takes = takes or [0] * len(samples)
        images = [(path, take) for s, take in zip(samples, takes, strict=True) for path in s.images]
        audios = [(path, take) for s, take in zip(samples, takes, strict=True) for path in s.audios]
        media = {}
        if self.features is not None:
            clips = [self.features.audio(*key) for key in audios]
            audio_lengths = iter([len(c) for c in clips])
            pictures = [self.features.image(*key) for key in images]
            media = {"image_features": torch.stack(pictures) if pictures else None,
                     "audio_features": torch.cat(clips) if clips else None}
        else:
            mels = [self.reader.mel(*key) for key in audios]
            audio_lengths = iter([self.audio_tokens(len(m)) for m in mels])
            media["pixels"] = torch.stack([self.reader.pixels(*k) for k in images]) if images else None
            media["mels"], media["mel_lengths"] = pad_mels(mels) if mels else (None, None)
        rows = []
        for sample in samples:
            messages = sample.messages[:-1] if prompt_only else sample.messages
            ids, labels = self.tokenizer.chat(messages, [self.image_tokens] * len(sample.images),
                                              [next(audio_lengths) for _ in sample.audios], sample.untrained)
            rows.append(self.fit(ids, labels))
        ids, labels = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
        return Batch(pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad),
                     pad_sequence(labels, batch_first=True, padding_value=IGNORE),
                     torch.tensor([len(row) for row in ids]), **media)

    def cut(self, sample: Sample, frames: dict[str, int]) -> tuple[bool, str | None]:
        """Whether a sample is longer than `max_length`, and if so why it can't be cut (None: it can).

        `frames` are the mel frames of the clips.
        """
        clips = [self.audio_tokens(frames[path]) for path in sample.audios]
        media = self.image_tokens * len(sample.images) + sum(clips)
        # A token is a byte at least, and a turn's role is no more tokens than letters: most samples need no
        # tokenising here.
        if media + len("".join(sample.turns).encode()) <= self.max_length:
            return False, None
        ids, _ = self.tokenizer.chat(sample.messages, [self.image_tokens] * len(sample.images), clips,
                                     sample.untrained)
        excess = len(ids) - self.max_length
        if excess <= 0 or excess <= len(self._free(ids)) or sample.messages[0][0] == "assistant":
            return excess > 0, None
        return True, f'its {"media" if media + 4 > self.max_length else "answer"} alone exceed max_length'

    def fit(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Cut to `max_length` at the front of the text, never at the end (the answer); media stay whole."""
        excess = len(ids) - self.max_length
        if excess <= 0:
            return ids, labels
        drop = set((self._free(ids) or list(range(1, len(ids))))[:excess])
        # A label is the next token: where that one is dropped, there is none.
        labels = [IGNORE if i + 1 in drop else label for i, label in enumerate(labels)]
        kept = [i for i in range(len(ids)) if i not in drop]
        return [ids[i] for i in kept], [labels[i] for i in kept]

    def _free(self, ids: list[int]) -> list[int]:
        """The places of tokens that may be cut: neither media nor the last answer, nor the first."""
        media = {self.tokenizer.image, self.tokenizer.audio}
        last = max(i for i, token in enumerate(ids) if token == self.tokenizer.ids[ASSISTANT])
        return [i for i in range(1, last - 1) if ids[i] not in media]
