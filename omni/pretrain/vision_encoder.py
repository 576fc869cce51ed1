"""Stage C: the vision encoder, by captions and answers."""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from omni.base import checkpoint
from omni.base.config import PretrainConfig, ThinkerArch, VisionArch, build
from omni.base.errors import UserError
from omni.data import image
from omni.data.collate import Collator
from omni.data.media_reader import MediaReader
from omni.data.sample import IMAGE, Sample, flat
from omni.data.tokenizer import Tokenizer
from omni.eval.grading import correct, normalise_words
from omni.model.generate import generate
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder
from omni.pretrain.stage import Stage

COLOR_WORDS = set("red green blue yellow orange purple pink brown black white gray grey".split())
WORDS_WEIGHT = 0.2  # of the word loss (summed over words), relative to the decoder's loss (per token)


def recolor(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """An image (3, H, W) in other colors: channels permuted, sometimes grey, sometimes negative."""
    pixels = pixels[torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.25:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return -pixels if rng.random() < 0.25 else pixels


class CachingReader(MediaReader):
    """Decodes each image once and keeps its bytes in memory."""

    def __init__(self, arch: VisionArch, seed: int, photographs: set[str]):
        super().__init__(arch, None, seed)
        self.photographs = photographs
        self.cached: dict[str, torch.Tensor] = {}
        self.free: list[torch.Tensor] = []  # places in one block of memory: single ones would fragment it

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        if path not in self.cached:
            pixels = super().pixels(path).add(1).mul(127.5).round()
            self.free = self.free or list(torch.empty((1000, *pixels.shape), dtype=torch.uint8))
            self.cached[path] = self.free.pop().copy_(pixels)
        pixels = self.cached[path].float().div(127.5).sub(1)
        return image.augment(pixels, self.rng(path, take), path in self.photographs) if take else pixels


def binary_word_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of scores (n, words), summed over all targets that are known (not NaN)."""
    known = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(scores[known], targets[known], reduction="sum")


def competing_word_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of scores (n, words), summed over n. Targets are weights of the words; NaN is unknown."""
    weights = targets.nan_to_num(0)
    return F.cross_entropy(scores, weights / weights.sum(1, keepdim=True).clamp_min(1e-6), reduction="sum")


def answer_words(sample: Sample) -> list[str]:
    """The words of all answers."""
    answers = [content for role, content in sample.messages if role == "assistant"]
    return [word for answer in answers for word in normalise_words(answer)]


def one_conversation_an_image(samples: list[Sample]) -> list[Sample]:
    """Joins all conversations about an image into one, so that a step encodes each image once."""
    joined: dict[tuple[str, ...], Sample] = {}
    for sample in samples:
        first = joined.get(sample.images)
        if first is None:
            joined[sample.images] = sample
        else:
            more = tuple((role, content.replace(IMAGE, "")) for role, content in sample.messages
                         if role != "system")
            joined[sample.images] = first._replace(turns=first.turns + flat(more))
    return list(joined.values())


class VisionStage(Stage):
    """C: the encoder learns what is said about images, through heads that are discarded afterwards.

    - A small decoder with its own tokenizer captions and answers from the merged patch features, as the
      Thinker will. Alone it takes long to learn more than the most frequent answers.
    - Each patch scores each word, and the highest scores decide whether a caption has the word (multiple-
      instance learning, Fang et al. 2015). The subject of a photograph fills it, so there the mean of all
      patches decides, and the words compete (Mahajan et al. 2018), weighted by inverse document frequency
      (Spaerck Jones 1972), since a word that is said of every image is no information.
    - Where a manifest says what is where (`objects`), the mean of the patches in a box scores its words.

    In each batch the decoder is trained on a quarter of the images. If their manifest names colors, the other
    images are recolored, and color words are not in their loss. Otherwise the encoder infers kinds from
    colors: it never saw a pink cat, so it decides that nothing pink is a cat.
    """

    kind = "vision_encoder"
    uses = {"arch", "vocab_size", "decoder", "photographs", "max_length", "start"}

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.colorful = [], []  # images, and whether their manifest names colors
        manifests, photographs = [], set()  # number of each image's manifest; files that are photographs
        paths = [config.train] if isinstance(config.train, str) else config.train
        for path in config.photographs:
            if path not in paths:
                raise UserError(f'"photographs": {path} is not among those to train on: {", ".join(paths)}')
        encoder = self.first_encoder(VisionEncoder)
        arch = encoder.arch
        reader = CachingReader(arch, config.seed, photographs)
        for number, path in enumerate(paths):
            samples = one_conversation_an_image(self._of_one_image(path, reader))
            self.train += samples
            manifests += [number] * len(samples)
            photographs |= {s.images[0] for s in samples if path in config.photographs}
            self.colorful += [any(COLOR_WORDS & {*answer_words(s)} for s in samples)] * len(samples)
        self.val = self._of_one_image(config.val, reader)
        tokenizer = Tokenizer.train([text for s in self.train for _, text in s.messages], config.vocab_size)
        counts = Counter(word for s in self.train
                         for word in {*answer_words(s), *(w for words, _ in s.objects for w in words)})
        self.words = {word: i for i, word in enumerate(w for w in sorted(counts) if counts[w] >= 10)}
        self.idf = torch.tensor([len(self.train) / counts[w] for w in self.words]).log()
        decoder = Thinker(build(ThinkerArch, {**config.decoder, "vocab_size": len(tokenizer)}, "decoder"))
        self.omni = OmniNetwork(tokenizer, decoder, None, encoder, frozen=())
        self.model = nn.ModuleDict({"omni": self.omni, "words": nn.Linear(arch.width, len(self.words))})
        self.model["area_words"] = nn.Linear(arch.width, len(self.words))
        nn.init.constant_(self.model["words"].bias, -6.0)  # most words are absent
        nn.init.constant_(self.model["area_words"].bias, -3.0)
        self.colors = [i for word, i in self.words.items() if word in COLOR_WORDS]
        self.collate = Collator(tokenizer, reader, self.omni.image_tokens, None, config.max_length)
        self.lengths = [len(tokenizer.chat(s.messages, [1], [])[0]) for s in self.train]
        if photographs:  # captions of a class are equally long: sort by manifest instead
            self.lengths = manifests

    def _of_one_image(self, paths: str | list[str], reader: CachingReader) -> list[Sample]:
        """The samples with one image and no clip; their images are then in the reader's cache."""
        samples = self.usable(paths, lambda s: len(s.images) == 1 and not s.audios, "one image and no clip")
        loaded = self.load_media(samples, f"images of {paths}", lambda s: reader.pixels(s.images[0]))
        return [sample for sample, _ in loaded]

    def batch(self, numbers, epoch: int):
        """A quarter of the images with their conversation, all with their words; new takes in each epoch."""
        take, number = epoch + 1, np.arange(len(numbers))
        order = [int(numbers[i]) for i in np.argsort((number + epoch) % 4 != 0, kind="stable")]
        samples = [self.train[i] for i in order]
        with_text = sum((number + epoch) % 4 == 0)
        pixels, photographs, image_words, areas, area_words = [], [], [], [], []
        for row, sample in enumerate(samples):
            path = sample.images[0]
            recolored = row >= with_text and self.colorful[order[row]]
            picture = self.collate.reader.pixels(path, take)
            pixels.append(recolor(picture, self.rng(epoch, order[row])) if recolored else picture)
            photograph = path in self.collate.reader.photographs
            photographs.append(photograph)
            placed = image.placement(self.collate.reader.rng(path, take), photograph)
            image_words.append(self._target(answer_words(sample), recolored=recolored))
            for words, box in sample.objects:
                areas.append((row, self._patches(image.moved(box, placed))))
                area_words.append(self._target(words, recolored=recolored))
        text = self.collate(samples[:with_text], [take] * with_text) if with_text else None
        return text, torch.stack(pixels), torch.tensor(photographs), image_words, areas, area_words

    def _target(self, words, recolored: bool) -> torch.Tensor:
        """(words,) 1 for words that are said, 0 for others, NaN for the colors of a recolored image."""
        target = torch.zeros(len(self.words))
        target[[self.words[w] for w in words if w in self.words]] = 1
        if recolored:
            target[self.colors] = torch.nan
        return target

    def _patches(self, box: tuple[float, ...]) -> torch.Tensor:
        """(P,) weights that average the patches centered in the box, or the one nearest to its center."""
        grid = self.omni.vision_encoder.grid
        centers = (torch.arange(grid) + 0.5) / grid
        spans = [((centers >= box[i]) & (centers <= box[i + 2])).float() for i in (0, 1)]
        for i, span in enumerate(spans):
            if not span.any():
                span[min(int((box[i] + box[i + 2]) / 2 * grid), grid - 1)] = 1
        inside = (spans[1][:, None] * spans[0]).flatten()
        return inside / inside.sum()

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        text, pixels, photographs, image_words, areas, area_words = batch
        patches = self.omni.encode_images(pixels.to(device))  # (M, P, width)
        scores, targets = self.model["words"](patches).float(), torch.stack(image_words).to(device)
        weighted = targets * self.idf.to(device)
        words = WORDS_WEIGHT * binary_word_loss(scores[~photographs].logsumexp(1), targets[~photographs])
        words = words + competing_word_loss(scores[photographs].mean(1), weighted[photographs])
        words = words / len(scores)
        if areas:
            rows = torch.tensor([row for row, _ in areas], device=device)
            weights = torch.stack([weight for _, weight in areas]).to(device)
            scores = self.model["area_words"](torch.einsum("rp,rpw->rw", weights, patches[rows])).float()
            targets = torch.stack(area_words).to(device)
            words = words + WORDS_WEIGHT * binary_word_loss(scores, targets) / len(rows)
        if text is None:
            return words, 1
        text = replace(text, pixels=None, image_features=patches[:text.samples])
        loss, _ = self.omni(text.to(device))
        return loss + words * text.answer_tokens, text.answer_tokens

    def evaluate(self, device) -> dict:
        """Next-token accuracy on held-out answers, and the share of held-out questions answered correctly."""
        hits = count = right = asked = 0
        for start in range(0, len(self.val), 64):
            samples = self.val[start:start + 64]
            batch = self.collate(samples).to(device)
            hits, count = hits + int(self.omni(batch)[1]), count + batch.answer_tokens
            questions = [s for s in samples if s.task == "qa"]
            if questions:
                answers = generate(self.omni, self.collate(questions, prompts=True).to(device), 24)
                right += sum(correct(self.omni.tokenizer.decode(ids), s.answer)
                             for ids, s in zip(answers, questions, strict=True))
                asked += len(questions)
        return {"token_acc": hits / count, "image_qa": right / max(asked, 1)}

    def content(self) -> dict:
        return checkpoint.part(self.omni.vision_encoder)
