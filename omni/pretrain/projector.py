"""The last part of stages B and C: projectors, from an encoder's features to words of a Thinker.

In stage A the Thinker read pictures and speech that were told in its own words (`reading.py`). A projector
that gives it these words lets it see and hear before `sft_omni.py` has trained anything. Neither the encoder
nor the Thinker is changed.
"""

import numpy as np
import torch
from torch.nn import functional as F

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.errors import UserError
from omni.data import audio, image
from omni.data.collate import pad_mels
from omni.data.tokenizer import SpeechPieces, Tokenizer
from omni.model.projector import Projector, words_of
from omni.pretrain.audio_encoder import AudioStage, mel_power
from omni.pretrain.reading import Middle, cell_weights
from omni.pretrain.vision_boxes import BoxStage

BATCH = 64  # held-out media at once


class Words:
    """The words of a Thinker as embeddings: a text (str) -> the sum of its tokens' embeddings (D,)."""

    def __init__(self, path: str):
        content = checkpoint.load(path, "thinker", 'choose another "thinker"')
        self.tokenizer = Tokenizer.from_content(content["tokenizer"])
        self.table = content["state"]["embed_tokens.weight"].float()
        self.name = words_of(self.table)
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> torch.Tensor:
        if text not in self._known:
            self._known[text] = self.table[self.tokenizer.encode(text)].sum(0)
        return self._known[text]


class ProjectorStage:
    """What both have in common: a stage for its media and encoder comes after this in a class's bases."""

    def __init__(self, config: PretrainConfig):
        for key in ("start", "thinker"):
            if not getattr(config, key):
                raise UserError(f'"{key}" is missing: a projector maps the features of "start" to the words '
                                'of "thinker"')
        super().__init__(config)
        self.before = checkpoint.load(config.start, self.kind, "make it with an earlier stage")
        self.thinker_words = Words(config.thinker)
        self.encoder.requires_grad_(False).eval()
        self.model = Projector(self.encoder.token_width, self.thinker_words.table.shape[1])

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        """Squared errors, relative to the variance of the Thinker's embeddings."""
        features, wanted = self.pairs(batch, device)
        errors = F.mse_loss(self.model(features).float(), wanted, reduction="sum") / wanted.shape[1]
        return errors / self.thinker_words.table.var(), len(wanted)

    def evaluate(self, device) -> dict:
        """The share of the variance of what is wanted that the projector explains."""
        pairs = [self.pairs(batch, device) for batch in self.held_out()]
        given = torch.cat([self.model(features).float() for features, _ in pairs])
        wanted = torch.cat([wanted for _, wanted in pairs])
        return {"explained": 1 - float(F.mse_loss(given, wanted) / wanted.var(0).mean())}

    def content(self) -> dict:
        return {**self.before, "projector": {"words_of": self.thinker_words.name,
                                             "state": self.model.state_dict()}}


class VisionProjectorStage(ProjectorStage, BoxStage):
    """C: each token of a picture becomes the sum of the words that are said of its place."""

    def batch(self, numbers, epoch: int):
        """Each image once plain and once augmented, in turns of an epoch."""
        pixels, wanted = [], []
        for number in numbers:
            sample, take = self.train[number], (epoch + number) % 2 * (epoch + 1)
            path = sample.images[0]
            pixels.append(self.reader.pixels(path, take))
            placed = image.placement(self.reader.rng(path, take)) if take else None
            wanted.append(self._wanted(sample, placed))
        return torch.stack(pixels), torch.cat(wanted)

    def held_out(self):
        for start in range(0, len(self.val), BATCH):
            samples = self.val[start:start + BATCH]
            yield (torch.stack([self.reader.pixels(sample.images[0]) for sample in samples]),
                   torch.cat([self._wanted(sample, None) for sample in samples]))

    def _wanted(self, sample, placed: image.Placement | None) -> torch.Tensor:
        """(S, D): the sum of the words of each token."""
        whole = (0.0, 0.0, 1.0, 1.0)
        boxes = [image.moved(box, placed) if placed and box != whole else box for _, box in sample.objects]
        weights = cell_weights(np.array(boxes, np.float32), Middle, self.side)  # (objects, S)
        words = torch.stack([sum(self.thinker_words(f" {word}") for word in words)
                             for words, _ in sample.objects])
        return torch.from_numpy(weights.astype(np.float32)).T @ words

    def pairs(self, batch, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, token width), and the embeddings that they should become (n, D)."""
        pixels, wanted = batch
        with torch.no_grad():
            squares = self.squares(self.encoder.to(device)(pixels.to(device)))
        return squares.flatten(0, 1), wanted.to(device)


class AudioProjectorStage(ProjectorStage, AudioStage):
    """B: each frame becomes the mean of the pieces' words, by the probabilities that the CTC head gives them.

    Silence becomes the embedding of <audio>, as in the readings of stage A.
    """

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        if "ctc_head" not in self.before:
            raise UserError(f'{config.start}: has no CTC head; make it with stage B')
        words, pieces = self.thinker_words, self.before["pieces"]
        silence = words.table[words.tokenizer.audio]
        self.piece_words = torch.stack([*(words(SpeechPieces.text_of(piece)) for piece in pieces), silence])

    def batch(self, numbers, epoch: int):
        mels, lengths, _ = super().batch(numbers, epoch)
        return mels, lengths

    def held_out(self):
        for start in range(0, len(self.val), BATCH):
            yield pad_mels([audio.log_mel(mel_power(clip), self.level)
                            for clip in self.val[start:start + BATCH]])

    def pairs(self, batch, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, token width), and the embeddings that they should become (n, D)."""
        mels, lengths = batch
        with torch.no_grad():
            features, lengths = self.encoder.to(device)(mels.to(device), lengths.to(device))
            frames = torch.cat([row[:n] for row, n in zip(features, lengths.tolist(), strict=True)])
            head = [self.before["ctc_head"][name].to(device) for name in ("weight", "bias")]
            shares = F.linear(frames, *head).float().softmax(-1)
            return frames, shares @ self.piece_words.to(device)
