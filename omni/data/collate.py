"""Samples -> a packed `Batch`: conversations tokenised and cut to length, media read."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from omni.data.batch import IGNORE, Batch
from omni.data.layout import AUDIO_BUCKETS, IMAGE_BUCKETS, bucket
from omni.data.media_reader import MediaReader
from omni.data.packing import pack, pad_index
from omni.data.sample import Sample
from omni.data.text_pieces import LEAST, pieces
from omni.data.tokenizer import Tokenizer

Medium = tuple[str, int]  # path and take


def pad_mels(mels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (F, mels) -> (C, longest F, mels) padded with zeros, and their lengths (C,)."""
    return pad_sequence(list(mels), batch_first=True), torch.tensor([len(m) for m in mels])


class Collator:
    """Makes batches. They hold the media, which the model encodes, or their frozen `features` if given.

    `image_tokens` is the number of tokens per image; `audio_tokens` maps mel frames to tokens of a clip.
    """

    def __init__(self, tokenizer: Tokenizer, reader: MediaReader, image_tokens: int,
                 audio_tokens: Callable[[int], int], max_length: int, features=None):
        self.tokenizer, self.reader, self.features = tokenizer, reader, features
        self.image_tokens, self.audio_tokens, self.max_length = image_tokens, audio_tokens, max_length

    def __call__(self, samples: Sequence[Sample], takes: Sequence[int] | None = None,
                 prompts: bool = False) -> Batch:
        """`takes` (B,) are the takes of each sample's media. With `prompts` the last answers are omitted."""
        takes = takes or [0] * len(samples)
        images = [(path, take) for s, take in zip(samples, takes, strict=True) for path in s.images]
        audios = [(path, take) for s, take in zip(samples, takes, strict=True) for path in s.audios]
        # What exceeds the limit of the features is encoded in the step, together with the rest of its batch.
        media = (self._image_features if self._kept("vision", images) else self._pixels)(images)
        clips, clip_tokens = (self._audio_features if self._kept("audio", audios) else self._mels)(audios)
        media |= clips
        left = iter(clip_tokens)
        rows = []
        for sample in samples:
            ids, labels = self.tokenizer.chat(sample.messages[:-1] if prompts else sample.messages,
                                              [self.image_tokens] * len(sample.images),
                                              [next(left) for _ in sample.audios], sample.untrained)
            if sample.continues:
                labels[len(ids) - self.tokenizer.closing - 1] = IGNORE
            rows.append(self.fit(ids, labels))
        batch = pack(rows, self.tokenizer.pad, prompts)
        image_tokens, audio_tokens = ((batch.ids == placeholder).nonzero()[:, 0]
                                      for placeholder in (self.tokenizer.image, self.tokenizer.audio))
        if "image_features" in media:  # features are padded to a bucket, so their tokens are too
            features = len(media["image_features"]) * self.image_tokens
            image_tokens = pad_index(image_tokens, features, len(batch.ids))
        if "audio_features" in media:
            audio_tokens = pad_index(audio_tokens, len(media["audio_features"]), len(batch.ids))
        return replace(batch, image_tokens=image_tokens, audio_tokens=audio_tokens, **media)

    def _kept(self, encoder: str, media: list[Medium]) -> bool:
        """Whether the frozen features of all these media are there."""
        return (self.features is not None and encoder in self.features.encoders
                and self.features.holds(media))

    def _image_features(self, images: list[Medium]) -> dict:
        """The batch's field of frozen image features, padded to a bucket."""
        if not images:
            return {}
        features = torch.stack([self.features.image(*medium) for medium in images])
        size = bucket(len(images), IMAGE_BUCKETS, least=4)
        return {"image_features": F.pad(features, (0, 0, 0, 0, 0, size - len(images)))}

    def _audio_features(self, audios: list[Medium]) -> tuple[dict, list[int]]:
        """The batch's field of frozen audio features, padded to a bucket; and the tokens of each clip."""
        if not audios:
            return {}, []
        clips = [self.features.audio(*medium) for medium in audios]
        features = torch.cat(clips)
        size = bucket(len(features), AUDIO_BUCKETS)
        return {"audio_features": F.pad(features, (0, 0, 0, size - len(features)))}, [len(c) for c in clips]

    def _pixels(self, images: list[Medium]) -> dict:
        """The batch's field of raw images."""
        return {"pixels": torch.stack([self.reader.pixels(*medium) for medium in images])} if images else {}

    def _mels(self, audios: list[Medium]) -> tuple[dict, list[int]]:
        """The batch's fields of raw clips, and the tokens of each clip."""
        if not audios:
            return {}, []
        mels = [self.reader.mel(*medium) for medium in audios]
        clip_tokens = [self.audio_tokens(len(mel)) for mel in mels]
        padded, lengths = pad_mels(mels)
        longest = max(clip_tokens)
        frames = torch.cat([torch.arange(count) + number * longest
                            for number, count in enumerate(clip_tokens)])
        return {"mels": padded, "mel_lengths": lengths, "audio_frames": frames}, clip_tokens

    def overlong(self, sample: Sample, frames: dict[str, int]) -> tuple[int, str | None]:
        """The tokens of a sample that is longer than `max_length`, and why it can't be cut (None if it can).

        0 tokens if it isn't longer. `frames` are the mel frames of each clip's longest take.
        """
        clips = [self.audio_tokens(frames[path]) for path in sample.audios]
        media = self.image_tokens * len(sample.images) + sum(clips)
        if media + self.tokenizer.most_tokens(sample.turns) <= self.max_length:
            return 0, None  # most samples are known to fit before they are tokenised
        ids, _ = self.tokenizer.chat(sample.messages, [self.image_tokens] * len(sample.images), clips,
                                     sample.untrained)
        excess = len(ids) - self.max_length
        plain = sample.messages[0][0] == "assistant"
        if excess <= (len(ids) - self.tokenizer.lead(ids) if plain else len(self._cuttable(ids))):
            return len(ids) if excess > 0 else 0, None
        template = len(self.tokenizer.chat((("user", ""), ("assistant", "")), [], [])[0])
        if not media:
            return len(ids), "its answer alone exceeds max_length"
        too_long = "media" if media + template > self.max_length else "media and answer"
        return len(ids), f"its {too_long} exceed max_length"

    def pieces(self, sample: Sample) -> list[Sample]:
        """A plain text in pieces that fit in `max_length`, which together are all of it; else the sample."""
        if len(sample.turns) != 2 or self.tokenizer.most_tokens(sample.turns) <= self.max_length:
            return [sample]
        role, text = sample.turns
        room = self.max_length - len(self.tokenizer.chat(((role, ""),), [], [])[0])
        texts = pieces(text, self.tokenizer, room) if room >= LEAST else [text]
        last = len(texts) - 1
        return [sample._replace(turns=(role, piece), continues=i < last) for i, piece in enumerate(texts)]

    def fit(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Cut the front of a prompt to fit `max_length`, but neither media nor the last answer.

        If there is nothing else, as in a plain text, it is cut behind what opens it: ValueError with media.
        """
        excess = len(ids) - self.max_length
        if excess <= 0:
            return ids, labels
        if not self._cuttable(ids) and {self.tokenizer.image, self.tokenizer.audio} & {*ids}:
            raise ValueError(f"{len(ids)} tokens of media and text, and max_length is {self.max_length}")
        dropped = set((self._cuttable(ids) or list(range(self.tokenizer.lead(ids), len(ids))))[:excess])
        # A label is the next token: where that token is dropped, the label is dropped too.
        labels = [IGNORE if i + 1 in dropped else label for i, label in enumerate(labels)]
        kept = [i for i in range(len(ids)) if i not in dropped]
        return [ids[i] for i in kept], [labels[i] for i in kept]

    def _cuttable(self, ids: list[int]) -> list[int]:
        """Indices of the tokens that may be cut: no media, and nothing of the template or the last answer."""
        media = {self.tokenizer.image, self.tokenizer.audio}
        last = len(ids) - 1 - ids[::-1].index(self.tokenizer.opens_answer)
        return [i for i in range(self.tokenizer.lead(ids), last - self.tokenizer.closing)
                if ids[i] not in media]
