"""The last part of stages B and C: projectors, from an encoder's features to words of a Thinker.

In stage A the Thinker read pictures and speech that were told in its own words (`reading.py`). A projector
that gives it these words lets it see and hear before `sft_omni.py` has trained anything. Neither the encoder
nor the Thinker is changed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.device import choose_device
from omni.base.errors import UserError
from omni.data import image
from omni.data.collate import pad_mels
from omni.data.sample import Sample
from omni.data.tokenizer import Tokenizer
from omni.model.projector import Projector, merge_patches, words_hash
from omni.pretrain.audio_encoder import AudioStage, piece_texts
from omni.pretrain.reading import Middle, cell_weights
from omni.pretrain.vision_boxes import BoxStage

BATCH = 64  # held-out media at once
Pair = tuple[torch.Tensor, torch.Tensor]  # a medium's features, and the embeddings that they should become


class Words:
    """The words of a Thinker as embeddings: a text (str) -> the sum of its tokens' embeddings (D,)."""

    def __init__(self, path: str):
        content = checkpoint.load(path, "thinker", 'choose another "thinker"')
        self.tokenizer = Tokenizer.from_content(content["tokenizer"])
        self.table = content["state"]["embed_tokens.weight"].float()
        self.hash = words_hash(self.table)
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> torch.Tensor:
        if text not in self._known:
            self._known[text] = self.table[self.tokenizer.encode(text)].sum(0)
        return self._known[text]


class ProjectorStage:
    """What both have in common. The other base of each class is the stage that reads its media."""

    uses = {"start", "thinker"}

    def __init__(self, config: PretrainConfig):
        for key in ("start", "thinker"):
            if not getattr(config, key):
                raise UserError(f'"{key}" is missing: a projector maps the features of "start" to the words '
                                'of "thinker"')
        super().__init__(config)
        self.thinker_words = Words(config.thinker)
        self.device = choose_device(config.device)
        self.encoder.to(self.device).requires_grad_(False).eval()
        self.kept: dict[int, Pair] = {}  # by the number of the sample
        self.model = Projector(self.encoder.token_width, self.thinker_words.table.shape[1])

    def batch(self, numbers, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, token width) and the embeddings that they should become (n, D), of all `numbers`.

        The encoder is frozen, so each medium is encoded once, in one version.
        """
        new = [number for number in numbers if number not in self.kept]
        if new:
            pairs = [(features.half(), wanted.half()) for features, wanted in self.taken(new)]
            self.kept |= zip(new, pairs, strict=True)
        features, wanted = zip(*(self.kept[number] for number in numbers), strict=True)
        return torch.cat(features).float(), torch.cat(wanted).float()

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        """Squared errors, relative to the variance of the Thinker's embeddings."""
        features, wanted = (part.to(device) for part in batch)
        errors = F.mse_loss(self.model(features).float(), wanted, reduction="sum") / wanted.shape[1]
        return errors / self.thinker_words.table.var(), len(wanted)

    def evaluate(self, device) -> dict:
        """The share of the variance of what is wanted that the projector explains."""
        features, wanted = map(torch.cat, zip(*self.held_out(), strict=True))
        return {"explained": 1 - float(F.mse_loss(self.model(features.to(device)).float().cpu(), wanted) /
                                       wanted.var(0).mean())}

    def content(self) -> dict:
        return {**self.before, "projector": {"words_of": self.thinker_words.hash,
                                             "state": self.model.state_dict()}}


class VisionProjectorStage(ProjectorStage, BoxStage):
    """C: each token of a picture becomes the sum of the words that its place is described by."""

    def taken(self, numbers: list[int]) -> list[Pair]:
        """Every other picture is augmented."""
        samples = [self.train[number] for number in numbers]
        return self.pairs(samples, [number % 2 for number in numbers])

    def held_out(self) -> Iterator[Pair]:
        for start in range(0, len(self.val), BATCH):
            samples = self.val[start:start + BATCH]
            yield from self.pairs(samples, [0] * len(samples))

    @torch.no_grad()
    def pairs(self, samples: Sequence[Sample], takes: list[int]) -> list[Pair]:
        """For each picture its features (S, token width), and the sum of the words at each token (S, D)."""
        pixels, wanted = [], []
        for sample, take in zip(samples, takes, strict=True):
            path = sample.images[0]
            pixels.append(self.reader.pixels(path, take))
            placed = image.placement(self.reader.rng(path, take)) if take else None
            wanted.append(self._wanted(sample, placed))
        patches = self.encoder(torch.stack(pixels).to(self.device)).cpu()
        return list(zip(merge_patches(patches, self.encoder.arch.merge), wanted, strict=True))

    def _wanted(self, sample: Sample, placed: image.Placement | None) -> torch.Tensor:
        boxes = np.array([self.shown(box, placed) for _, box in sample.objects], np.float32)
        weights = cell_weights(boxes, Middle, self.side)  # (objects, S)
        words = torch.stack([sum(self.thinker_words(f" {word}") for word in words)
                             for words, _ in sample.objects])
        return torch.from_numpy(weights.astype(np.float32)).T @ words


class AudioProjectorStage(ProjectorStage, AudioStage):
    """B: each frame becomes the mean of the pieces' words, by the probabilities that the CTC head gives them.

    Silence becomes the embedding of <audio>, as in the readings of stage A.
    """

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        texts, words = piece_texts(self.before, config.start), self.thinker_words
        silence = words.table[words.tokenizer.audio]
        self.piece_words = torch.stack([*map(words, texts), silence])

    def taken(self, numbers: list[int]) -> list[Pair]:
        """The clips are augmented as in stage B."""
        mels, lengths, _ = AudioStage.batch(self, numbers, epoch=0)
        return self.pairs(mels, lengths)

    def held_out(self) -> Iterator[Pair]:
        for start in range(0, len(self.val), BATCH):
            clips = self.val[start:start + BATCH]
            yield from self.pairs(*pad_mels([self.reader.mel(clip) for clip in clips]))

    @torch.no_grad()
    def pairs(self, mels: torch.Tensor, lengths: torch.Tensor) -> list[Pair]:
        """For each clip its features (S, width), and the mean of the words at each frame (S, D)."""
        features, lengths = self.encoder(mels.to(self.device), lengths.to(self.device))
        found = []
        for row, length in zip(features.cpu(), lengths.tolist(), strict=True):
            frames = row[:length]
            scores = F.linear(frames, self.before["ctc_head"]["weight"], self.before["ctc_head"]["bias"])
            found.append((frames, scores.softmax(-1) @ self.piece_words))
        return found
