"""Stage C where manifests say what is where: the vision encoder, by the words of boxes."""

from collections import Counter

import numpy as np
import torch
from torch import nn

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.errors import UserError
from omni.data import image
from omni.data.sample import Sample
from omni.model.projector import merge_patches
from omni.model.vision_encoder import VisionEncoder
from omni.pretrain.stage import Stage
from omni.pretrain.vision_encoder import COLOR_WORDS, CachingReader, binary_word_loss, recolor

WHOLE = (0.0, 0.0, 1.0, 1.0)  # the box of the ground
PRESENT, ABSENT = 0.3, 0.1  # shares of a box or a cell, whichever is smaller; between: unknown


def shared(box: tuple[float, ...], side: int) -> np.ndarray:
    """(side, side): what each cell of a grid shares with a box, as a fraction of the smaller of the two."""
    left, top, right, bottom = box
    starts = np.arange(side) / side
    across, down = (np.clip(np.minimum(end, starts + 1 / side) - np.maximum(start, starts), 0, None)
                    for start, end in ((left, right), (top, bottom)))
    return np.outer(down, across) / max(min((right - left) * (bottom - top), 1 / side ** 2), 1e-9)


def average_precision(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """The average precision of scores (n, words), as a mean over the words that have a target."""
    found = targets.gather(0, scores.argsort(0, descending=True))
    found = found[:, found.sum(0) > 0]
    ranks = torch.arange(1, len(found) + 1, device=found.device)[:, None]
    return float(((found.cumsum(0) / ranks * found).sum(0) / found.sum(0)).mean())


class BoxStage(Stage):
    """C: the encoder learns which words are said about which place, through linear heads that are discarded.

    - The features of a merged square of patches, a token of the Thinker, score the words of all boxes there.
    - The features of a patch score the words of the boxes that have their center in it: so things that
      share a cell can be told apart and counted. A box around the whole image has no center.

    Half of the images are recolored, and color words are then not in their loss. Otherwise the encoder infers
    kinds from colors: it never saw a pink cat, so it decides that nothing pink is a cat.
    """

    kind = "vision_encoder"
    uses = {"arch", "start"}

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.encoder = encoder = self.first_encoder(VisionEncoder)
        arch = encoder.arch
        self.reader = CachingReader(arch, config.seed, set())
        self.train, self.val = self._with_boxes(config.train), self._with_boxes(config.val)
        counts = Counter(word for sample in self.train for words, _ in sample.objects for word in words)
        self.words = {word: i for i, word in enumerate(w for w in sorted(counts) if counts[w] >= 10)}
        if not self.words:
            raise UserError('"train": no word is in the boxes of at least 10 images')
        self.colors = [i for word, i in self.words.items() if word in COLOR_WORDS]
        self.grid, self.side = encoder.grid, encoder.grid // arch.merge
        self.model = nn.ModuleDict({"encoder": encoder,
                                    "cell": nn.Linear(encoder.token_width, len(self.words)),
                                    "center": nn.Linear(arch.width, len(self.words))})
        for head in (self.model["cell"], self.model["center"]):
            nn.init.constant_(head.bias, -4.0)  # most words are absent
        self.lengths = [0] * len(self.train)  # in any order

    def _with_boxes(self, paths: str | list[str]) -> list[Sample]:
        """The samples with one image and boxes; their images are then in the reader's cache."""
        samples = self.usable(paths, lambda s: len(s.images) == 1 and bool(s.objects), "one image with boxes")
        return [sample for sample, _ in self.load_media(samples, f"images of {paths}", self._cache)]

    def _cache(self, sample: Sample) -> None:
        self.reader.pixels(sample.images[0])

    def targets(self, sample: Sample, placed: image.Placement | None,
                recolored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The words of each cell and of each patch: 1 or 0, NaN if unknown."""
        cells = np.zeros((self.side, self.side, len(self.words)), np.float32)
        centers = np.zeros((self.grid, self.grid, len(self.words)), np.float32)
        for words, box in sample.objects:
            ids = [self.words[word] for word in words if word in self.words]
            box, whole = self.shown(box, placed), box == WHOLE
            if not whole:
                column, row = (min(int((box[i] + box[i + 2]) / 2 * self.grid), self.grid - 1) for i in (0, 1))
                centers[row, column, ids] = 1
            cells[:, :, ids] = np.maximum(cells[:, :, ids], shared(box, self.side)[:, :, None])
        cells = np.where(cells >= PRESENT, 1, np.where(cells > ABSENT, np.nan, 0)).astype(np.float32)
        if recolored:
            cells[:, :, self.colors] = centers[:, :, self.colors] = np.nan
        return tuple(torch.from_numpy(t).flatten(0, 1) for t in (cells, centers))

    @staticmethod
    def shown(box: tuple[float, ...], placed: image.Placement | None) -> tuple[float, ...]:
        """A box where an augmented image shows it. What fills the whole image still does so."""
        return image.moved(box, placed) if placed and box != WHOLE else box

    def batch(self, numbers, epoch: int):
        """Each image once plain and once augmented, in turns of an epoch; half of both recolored."""
        pixels, targets = [], []
        for number in numbers:
            sample, rng = self.train[number], self.rng(epoch, number)
            path, take = sample.images[0], (epoch + number) % 2 * (epoch + 1)
            recolored = rng.random() < 0.5
            picture = self.reader.pixels(path, take)
            pixels.append(recolor(picture, rng) if recolored else picture)
            placed = image.placement(self.reader.rng(path, take)) if take else None
            targets.append(self.targets(sample, placed, recolored))
        cells, centers = (torch.stack(part) for part in zip(*targets, strict=True))
        return torch.stack(pixels), cells, centers

    def scores(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The words' scores in cells (M, S, words) and in patches (M, P, words)."""
        patches = self.encoder(pixels)
        squares = merge_patches(patches, self.encoder.arch.merge)
        return self.model["cell"](squares).float(), self.model["center"](patches).float()

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        pixels, *targets = (part.to(device) for part in batch)
        loss = sum(binary_word_loss(scores, known)
                   for scores, known in zip(self.scores(pixels), targets, strict=True))
        return loss, max(1, sum(int((known == 1).sum()) for known in targets))

    def evaluate(self, device) -> dict:
        """Average precision of words in cells and in patches; the share of a box's words that score best."""
        scores, targets = ([], []), ([], [])
        for start in range(0, len(self.val), 64):
            samples = self.val[start:start + 64]
            pixels = torch.stack([self.reader.pixels(s.images[0]) for s in samples]).to(device)
            for kept, part in zip(scores, self.scores(pixels), strict=True):
                kept.append(part.cpu().flatten(0, 1))
            for sample in samples:
                for kept, part in zip(targets, self.targets(sample, None, False), strict=True):
                    kept.append(part.nan_to_num(0))
        (cells, centers), (cells_are, centers_are) = map(torch.cat, scores), map(torch.cat, targets)
        hits = words = 0
        for row in centers_are.any(1).nonzero().flatten():
            right = centers_are[row].nonzero().flatten()
            best = centers[row].topk(len(right)).indices
            hits, words = hits + int(torch.isin(best, right).sum()), words + len(right)
        return {"cell_ap": average_precision(cells, cells_are),
                "center_ap": average_precision(centers, centers_are), "box_words": hits / max(words, 1)}

    def content(self) -> dict:
        return checkpoint.part(self.encoder)
