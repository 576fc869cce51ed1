"""Stage C: the vision encoder, by captions and answers."""

from collections import Counter
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from omni import checkpoint, image
from omni.batch import IMAGE, Sample
from omni.collate import Collator, MediaReader
from omni.config import PretrainConfig, ThinkerArch, VisionArch, build
from omni.model import OmniModel
from omni.stage import Stage
from omni.tasks import correct, normalise_words
from omni.thinker import Thinker
from omni.tokenizer import Tokenizer
from omni.vision_encoder import VisionEncoder

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

    def __init__(self, image_size: int, seed: int):
        super().__init__(image_size, seed)
        self.kept: dict[str, torch.Tensor] = {}

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        if path not in self.kept:
            self.kept[path] = super().pixels(path).add(1).mul(127.5).round().byte()
        pixels = self.kept[path].float().div(127.5).sub(1)
        return image.augment(pixels, self.rng(path, take)) if take else pixels


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
            talks[sample.images] = replace(said, messages=said.messages + more)
    return list(talks.values())


class VisionStage(Stage):
    """C: what is said about pictures, told in two ways by heads that are thrown away afterwards.

    A small decoder with a tokenizer of its own captions and answers from the merged patch features, just as
    the Thinker will. Alone it learns for long what is usually said before it looks; so each patch also scores
    each word, and the best patches decide whether the word is said about the picture at all
    (multiple-instance learning of a caption's words, Fang et al. 2015). That puts "red" and "cat" where the
    red cat is.
    """

    kind = "vision_encoder"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.val = ([s for s in self.read(p) if len(s.images) == 1 and not s.audios]
                                for p in (config.train, config.val))
        self.train = one_talk_a_picture(self.train)
        tokenizer = Tokenizer.train([text for s in self.train for _, text in s.messages], config.vocab_size)
        counts = Counter(word for s in self.train for word in set(said_words(s)))
        self.words = {word: i for i, word in enumerate(w for w in sorted(counts) if counts[w] >= 10)}
        arch = build(VisionArch, config.arch, "arch")
        decoder = Thinker(build(ThinkerArch, {**config.decoder, "vocab_size": len(tokenizer)}, "decoder"))
        self.omni = OmniModel(tokenizer, decoder, None, VisionEncoder(arch), freeze_encoders=False)
        self.model = nn.ModuleDict({"omni": self.omni, "words": nn.Linear(arch.width, len(self.words))})
        nn.init.constant_(self.model["words"].bias, -6.0)  # most words are said about few pictures
        reader = KeepingReader(arch.image_size, config.seed)
        self.collate = Collator(tokenizer, reader, self.omni.image_tokens, None, config.max_length)
        for sample in tqdm(self.train + self.val, desc="pictures", mininterval=2, disable=None, leave=False):
            reader.pixels(sample.images[0])
        self.lengths = [len(tokenizer.chat(s.messages, [1], [])[0]) for s in self.train]

    def batch(self, numbers, epoch: int):
        """Half of the pictures with their talk, half recolored; every epoch sees other takes of all."""
        told = [self.train[i] for i in numbers[epoch % 2::2]]
        recolored = [self.train[i] for i in numbers[1 - epoch % 2::2]]
        samples = told + recolored
        said = torch.zeros(len(samples), len(self.words))
        for row, sample in zip(said, samples, strict=True):
            row[[self.words[w] for w in said_words(sample) if w in self.words]] = 1
        known = torch.ones_like(said)
        known[len(told):, [i for word, i in self.words.items() if word in COLOR_WORDS]] = 0
        paths = [s.images[0] for s in recolored]
        pixels = [recolor(self.collate.reader.pixels(p, epoch + 1), self.rng(epoch, crc32(p.encode())))
                  for p in paths]
        batch = self.collate(told, [epoch + 1] * len(told)) if told else None
        return batch, torch.stack(pixels) if pixels else None, said, known

    def loss(self, batch, device) -> tuple[torch.Tensor, torch.Tensor]:
        told, recolored, said, known = batch
        pixels = [told.pixels] * (told is not None) + [recolored] * (recolored is not None)
        patches = self.omni.encode_images(torch.cat(pixels).to(device))
        scores = self.model["words"](patches).float().logsumexp(1)  # (M, words): the best patches decide
        words = F.binary_cross_entropy_with_logits(
            scores, said.to(device), known.to(device), reduction="sum") * WORDS_WEIGHT / len(said)
        if told is None:
            return words, torch.ones(())
        told = replace(told, pixels=None, image_features=patches[:len(told.pixels)])
        loss, count, _ = self.omni(told.to(device))
        return loss + words * count, count

    def evaluate(self, device) -> dict:
        """Share of held-out answer tokens predicted, and of held-out questions answered exactly."""
        hits = count = right = asked = 0
        for start in range(0, len(self.val), 64):
            samples = self.val[start:start + 64]
            _, n, hit = self.omni(self.collate(samples).to(device))
            hits, count = hits + int(hit), count + int(n)
            questions = [s for s in samples if s.task == "qa"]
            if questions:
                answers = self.omni.generate(self.collate(questions, prompt_only=True).to(device), 24)
                right += sum(correct(self.omni.tokenizer.decode(ids), s.answer)
                             for ids, s in zip(answers, questions, strict=True))
                asked += len(questions)
        return {"token_acc": hits / count, "image_qa": right / max(asked, 1)}

    def content(self) -> dict:
        return checkpoint.part(self.omni.vision_encoder)
