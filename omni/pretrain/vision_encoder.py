"""Stage C: the vision encoder, by captions and answers."""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from omni import checkpoint
from omni.config import PretrainConfig, ThinkerArch, VisionArch, build
from omni.data import image
from omni.data.collate import Collator
from omni.data.media_reader import MediaReader
from omni.data.sample import IMAGE, Sample, flat
from omni.data.tokenizer import Tokenizer
from omni.errors import UserError
from omni.eval.grading import correct, normalise_words
from omni.model.generate import generate
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder
from omni.pretrain.stage import Stage

COLOR_WORDS = set("red green blue yellow orange purple pink brown black white gray grey".split())
WORDS_WEIGHT = 0.2  # of the word scores' loss, summed over words, beside the decoder's loss a token


def recolor(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A picture (3, H, W) in other colors: channels permuted, sometimes grey, sometimes as a negative."""
    pixels = pixels[torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.25:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return -pixels if rng.random() < 0.25 else pixels


class KeepingReader(MediaReader):
    """A reader that decodes each picture once and keeps it as bytes."""

    def __init__(self, image_size: int, seed: int, photographs: set[str]):
        super().__init__(image_size, seed)
        self.photographs = photographs
        self.kept: dict[str, torch.Tensor] = {}

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        if path not in self.kept:
            self.kept[path] = super().pixels(path).add(1).mul(127.5).round().byte()
        pixels = self.kept[path].float().div(127.5).sub(1)
        return image.augment(pixels, self.rng(path, take), path in self.photographs) if take else pixels


def known_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy (n, words), summed over n and the known words."""
    known = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(scores[known], targets[known], reduction="sum")


def shared_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (n, words), summed over n. Targets are weights of the words said, NaN where unknown."""
    weights = targets.nan_to_num(0)
    return F.cross_entropy(scores, weights / weights.sum(1, keepdim=True).clamp_min(1e-6), reduction="sum")


def said_words(sample: Sample) -> list[str]:
    """The words of all answers."""
    answers = [content for role, content in sample.messages if role == "assistant"]
    return [word for answer in answers for word in normalise_words(answer)]


def one_talk_a_picture(samples: list[Sample]) -> list[Sample]:
    """All that is said about a picture as one long talk: a step encodes the picture once for all of it."""
    talks: dict[tuple[str, ...], Sample] = {}
    for sample in samples:
        said = talks.get(sample.images)
        if said is None:
            talks[sample.images] = sample
        else:
            more = tuple((role, content.replace(IMAGE, "")) for role, content in sample.messages
                         if role != "system")
            talks[sample.images] = said._replace(turns=said.turns + flat(more))
    return list(talks.values())


class VisionStage(Stage):
    """C: what is said about pictures, told in several ways by heads that are thrown away afterwards.

    - A small decoder with a tokenizer of its own captions and answers from the merged patch features, as
      the Thinker will. Alone it learns for long what is usually said before it looks.
    - Each patch scores each word, and the best patches decide whether it is said about the picture at all
      (multiple-instance learning of a caption's words, Fang et al. 2015). What a photograph is of fills it:
      there the mean of all patches decides, and the words compete (Mahajan et al. 2018) for shares by their
      inverse document frequency (Spaerck Jones 1972): what is said of every picture tells nothing.
    - Where a manifest says what is where (`objects`), the mean of the patches in a box scores its words.

    A quarter of the pictures have their whole talk told. Where colors are spoken of, the others are shown in
    other ones, and then nothing is asked about colors. Otherwise what a thing is gets inferred from its color
    too: a pink cat was never seen, so what is pink can't be a cat. A manifest that never names a color keeps
    those it has.
    """

    kind = "vision_encoder"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.colorful = [], []  # pictures, and whether their manifest speaks of colors
        manifests, photographs = [], set()  # the number of each picture's manifest; photographs' files
        paths = [config.train] if isinstance(config.train, str) else config.train
        for path in config.photographs:
            if path not in paths:
                raise UserError(f'"photographs": {path} is not among those to train on: {", ".join(paths)}')
        for number, path in enumerate(paths):
            talks = one_talk_a_picture(self._of_one_picture(path))
            self.train += talks
            manifests += [number] * len(talks)
            photographs |= {s.images[0] for s in talks if path in config.photographs}
            self.colorful += [any(COLOR_WORDS & {*said_words(s)} for s in talks)] * len(talks)
        self.val = self._of_one_picture(config.val)
        tokenizer = Tokenizer.train([text for s in self.train for _, text in s.messages], config.vocab_size)
        counts = Counter(word for s in self.train
                         for word in {*said_words(s), *(w for words, _ in s.objects for w in words)})
        self.words = {word: i for i, word in enumerate(w for w in sorted(counts) if counts[w] >= 10)}
        self.idf = torch.tensor([len(self.train) / counts[w] for w in self.words]).log()
        arch = build(VisionArch, config.arch, "arch")
        decoder = Thinker(build(ThinkerArch, {**config.decoder, "vocab_size": len(tokenizer)}, "decoder"))
        self.omni = OmniNetwork(tokenizer, decoder, None, VisionEncoder(arch), freeze_encoders=False)
        self.model = nn.ModuleDict({"omni": self.omni, "words": nn.Linear(arch.width, len(self.words))})
        self.model["area_words"] = nn.Linear(arch.width, len(self.words))
        nn.init.constant_(self.model["words"].bias, -6.0)  # most are not said
        nn.init.constant_(self.model["area_words"].bias, -3.0)
        self.colors = [i for word, i in self.words.items() if word in COLOR_WORDS]
        reader = KeepingReader(arch.image_size, config.seed, photographs)
        self.collate = Collator(tokenizer, reader, self.omni.image_tokens, None, config.max_length)
        for sample in tqdm(self.train + self.val, desc="pictures", mininterval=2, disable=None, leave=False):
            reader.pixels(sample.images[0])
        self.lengths = [len(tokenizer.chat(s.messages, [1], [])[0]) for s in self.train]
        if photographs:  # those of one kind have talks of one length: a batch would be of one kind
            self.lengths = manifests

    def _of_one_picture(self, paths: str | list[str]) -> list[Sample]:
        return [s for s in self.read(paths) if len(s.images) == 1 and not s.audios]

    def batch(self, numbers, epoch: int):
        """A quarter of the pictures with their talk, the others with their words; every epoch other takes."""
        take, number = epoch + 1, np.arange(len(numbers))
        order = [int(numbers[i]) for i in np.argsort((number + epoch) % 4 != 0, kind="stable")]
        samples = [self.train[i] for i in order]
        told = sum((number + epoch) % 4 == 0)
        pixels, photographs, picture_words, areas, area_words = [], [], [], [], []
        for row, sample in enumerate(samples):
            path = sample.images[0]
            picture, other = self.collate.reader.pixels(path, take), row >= told and self.colorful[order[row]]
            pixels.append(recolor(picture, self.rng(epoch, order[row])) if other else picture)
            photograph = path in self.collate.reader.photographs
            photographs.append(photograph)
            placed = image.placement(self.collate.reader.rng(path, take), photograph)
            picture_words.append(self._target(said_words(sample), recolored=other))
            for words, box in sample.objects:
                areas.append((row, self._patches(image.moved(box, placed))))
                area_words.append(self._target(words, recolored=other))
        talk = self.collate(samples[:told], [take] * told) if told else None
        return talk, torch.stack(pixels), torch.tensor(photographs), picture_words, areas, area_words

    def _target(self, words, recolored: bool) -> torch.Tensor:
        """(words,) 1 where a word is said, 0 where not, NaN where unknown: colors of a recolored picture."""
        target = torch.zeros(len(self.words))
        target[[self.words[w] for w in words if w in self.words]] = 1
        if recolored:
            target[self.colors] = torch.nan
        return target

    def _patches(self, box: tuple[float, ...]) -> torch.Tensor:
        """(P,) weights that average the patches with centers in the box, or the one nearest to its center."""
        grid = self.omni.vision_encoder.grid
        centers = (torch.arange(grid) + 0.5) / grid
        spans = [((centers >= box[i]) & (centers <= box[i + 2])).float() for i in (0, 1)]
        for i, span in enumerate(spans):
            if not span.any():
                span[min(int((box[i] + box[i + 2]) / 2 * grid), grid - 1)] = 1
        inside = (spans[1][:, None] * spans[0]).flatten()
        return inside / inside.sum()

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        talk, pixels, photographs, picture_words, areas, area_words = batch
        patches = self.omni.encode_images(pixels.to(device))  # (M, P, width)
        scores, said = self.model["words"](patches).float(), torch.stack(picture_words).to(device)
        telling = said * self.idf.to(device)
        words = WORDS_WEIGHT * known_loss(scores[~photographs].logsumexp(1), said[~photographs])
        words = (words + shared_loss(scores[photographs].mean(1), telling[photographs])) / len(scores)
        if areas:
            rows = torch.tensor([row for row, _ in areas], device=device)
            weights = torch.stack([weight for _, weight in areas]).to(device)
            scores = self.model["area_words"](torch.einsum("rp,rpw->rw", weights, patches[rows])).float()
            words = words + WORDS_WEIGHT * known_loss(scores, torch.stack(area_words).to(device)) / len(rows)
        if talk is None:
            return words, 1
        talk = replace(talk, pixels=None, image_features=patches[:talk.samples])
        loss, _ = self.omni(talk.to(device))
        return loss + words * talk.answer_tokens, talk.answer_tokens

    def evaluate(self, device) -> dict:
        """Share of held-out answer tokens predicted, and of held-out questions answered exactly."""
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
