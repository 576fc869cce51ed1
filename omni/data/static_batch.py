"""Batches padded to a few fixed sizes, so that one CUDA graph serves many batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from omni.data.batch import IGNORE, Batch
from omni.data.layout import bucket, packed_layout

LEVELS = (0.5, 0.9, 1.0)  # the share of batches that fit in each of the sizes
SPARE = 1.0  # standard deviations that the largest size has above the largest batch that was seen


@dataclass(frozen=True)
class Size:
    """Numbers of tokens, answer tokens, images, and audio features."""

    tokens: int
    answers: int
    images: int
    audio: int

    @classmethod
    def of(cls, batch: Batch) -> "Size":
        """The size of a batch without its padding, but for the one token of it that every batch needs."""
        padding = len(batch.ids) - 1
        images, audio = (int((index != padding).sum()) for index in (batch.image_tokens, batch.audio_tokens))
        return cls(sum(batch.layout.lengths) + 1, batch.answer_tokens, images // _image_tokens(batch), audio)

    def __le__(self, other: "Size") -> bool:
        return all(a <= b for a, b in zip(_numbers(self), _numbers(other), strict=True))


def _numbers(size: Size) -> tuple[int, ...]:
    return size.tokens, size.answers, size.images, size.audio


def _image_tokens(batch: Batch) -> int:
    """Tokens of each image."""
    return len(batch.image_tokens) // len(batch.image_features) if batch.image_features is not None else 1


def has_media_to_encode(batch: Batch) -> bool:
    """Whether an encoder runs in the step, whose sizes are not fixed."""
    return batch.pixels is not None or batch.mels is not None


class StaticSizes:
    """Up to three sizes for batches like those of `sample`, which have equally many rows.

    A size is a number of standard deviations above the mean, the same for tokens, answers, images and audio.
    """

    def __init__(self, sample: Sequence[Batch]):
        self.rows = max(batch.samples for batch in sample)
        images = [batch for batch in sample if batch.image_features is not None]
        audio = [batch for batch in sample if batch.audio_features is not None]
        # Features without rows: what a batch that lacks such media is padded from.
        self.image = images[0].image_features[:0] if images else None
        self.image_tokens = _image_tokens(images[0]) if images else 1
        self.audio = audio[0].audio_features[:0] if audio else None
        counts = torch.tensor([_numbers(Size.of(batch)) for batch in sample], dtype=torch.float64)
        mean, deviation = counts.mean(0), counts.std(0, correction=0)
        above = ((counts - mean) / deviation.clamp(min=1)).amax(1)  # deviations that a batch needs
        self.sizes = []
        for share in LEVELS:
            level = above.quantile(share) + (SPARE if share == 1 else 0)
            size = [bucket(max(1, int(n) + 1), 64, least=8) if highest else 0 for n, highest in
                    zip((mean + level * deviation).tolist(), counts.amax(0).tolist(), strict=True)]
            if not self.sizes or size[0] > self.sizes[-1].tokens:
                self.sizes.append(Size(*size))
        longest = max(max(batch.layout.lengths) for batch in sample)
        self.longest = 1 << (max(longest, self.sizes[-1].tokens // 4) - 1).bit_length()

    def fit(self, batch: Batch) -> Batch | None:
        """The batch padded to the smallest size that holds it; None if none does."""
        if batch.samples != self.rows or has_media_to_encode(batch) \
                or max(batch.layout.lengths) > self.longest:
            return None
        needed = Size.of(batch)
        size = next((size for size in self.sizes if needed <= size), None)
        return None if size is None else self._padded(batch, size)

    def holds(self, batch: Batch) -> bool:
        """Whether a batch comes from `fit`, so that it has one of the sizes."""
        found = len(batch.ids), len(batch.answers), len(batch.image_tokens), len(batch.audio_tokens)
        alike = (batch.samples, batch.layout.max_seqlen) == (self.rows, self.longest)
        return alike and not has_media_to_encode(batch) and found in [
            (size.tokens, size.answers, size.images * self.image_tokens, size.audio) for size in self.sizes]

    def _padded(self, batch: Batch, size: Size) -> Batch | None:
        lengths, N = batch.layout.lengths, size.tokens
        padding = N - sum(lengths)
        if padding > self.longest:
            return None
        layout = replace(packed_layout(lengths, padding), max_seqlen=self.longest)
        last, used = len(batch.ids) - 1, sum(lengths)

        def index(tokens: torch.Tensor, count: int) -> torch.Tensor:
            tokens = tokens[tokens != last]
            return F.pad(tokens, (0, count - len(tokens)), value=N - 1)

        images = self.image if batch.image_features is None else batch.image_features[:size.images]
        audio = self.audio if batch.audio_features is None else batch.audio_features[:size.audio]
        if images is not None:
            images = F.pad(images, (0, 0, 0, 0, 0, size.images - len(images)))
        if audio is not None:
            audio = F.pad(audio, (0, 0, 0, size.audio - len(audio)))
        return replace(
            batch, layout=layout,
            ids=F.pad(batch.ids[:used], (0, padding), value=int(batch.ids[-1])),
            labels=F.pad(batch.labels[:used], (0, padding), value=IGNORE),
            answers=index(batch.answers, size.answers),
            image_tokens=index(batch.image_tokens, size.images * self.image_tokens),
            audio_tokens=index(batch.audio_tokens, size.audio), image_features=images, audio_features=audio)
