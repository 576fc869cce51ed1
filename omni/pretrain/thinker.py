"""Stage A: the Thinker, by next-token prediction."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from omni.base import checkpoint
from omni.base.config import PretrainConfig, ThinkerArch, build
from omni.base.errors import UserError
from omni.data.batch import IGNORE, Batch
from omni.data.packing import Row, pack
from omni.data.sample import Sample
from omni.data.tokenizer import Tokenizer
from omni.model.loss import answer_loss
from omni.model.thinker import Thinker
from omni.pretrain.heard import Heard
from omni.pretrain.ragged import Ragged
from omni.pretrain.reading import Cells, Pictures, Speech, with_picture
from omni.pretrain.stage import Stage

TOKENIZER_TEXTS = 200_000  # texts that the tokenizer is trained on, evenly spaced
NOISE = 0.2  # standard deviation of the noise on a picture's cells, relative to that of the embeddings


class Encoded(NamedTuple):
    """Samples as tokens: ids, what is trained on, and what is in the pictures."""

    ids: Ragged
    trained: Ragged
    pictures: Pictures

    def row(self, number: int) -> Row:
        ids, trained = self.ids[number], self.trained[number]
        return list(ids), [ids[t + 1] if kept else IGNORE for t, kept in enumerate(trained)]


class ThinkerStage(Stage):
    """A: next-token prediction on text, on pictures that are told in words, and on noisy pieces of speech.

    A sample with `objects` and no image is a picture: each of its tokens is the sum of the embeddings of the
    words in its cell. `reading_share` of all samples are speech: what `audio_encoder` hears in `clips`, or
    without these texts that could be spoken, drawn anew for each epoch.
    """

    kind = "thinker"
    uses = {"arch", "vocab_size", "reading_share", "speech_pieces", "max_length", "start",
            "audio_encoder", "clips"}

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        if bool(config.clips) != bool(config.audio_encoder):
            raise UserError('"clips" are heard by "audio_encoder": give both, or neither')
        if config.start and config.vocab_size != PretrainConfig().vocab_size:
            raise UserError('"start" is a Thinker with its own tokenizer: leave "vocab_size" out')
        train, val = self.read(config.train), self.read(config.val)
        before = checkpoint.load(config.start, "thinker", 'choose another "start"') if config.start else None
        self.tok = Tokenizer.from_content(before["tokenizer"]) if before else self._new_tokenizer(train)
        self.speech = Speech(train, self.tok, config.speech_pieces)
        self.val, self.train = val, range(len(train))
        self.data, self.val_data = self._encoded(train), self._encoded(val)
        self.heard = self._listened() if config.clips else None
        share = config.reading_share if self.speech.texts or self.heard else 0.0
        self.readings = round(len(train) * share / max(1e-9, 1 - share))
        self.model = Thinker(build(ThinkerArch, {**config.arch, "vocab_size": len(self.tok)}, "arch"))
        if before:
            checkpoint.load_state(self.model, before["state"], "the Thinker", config.start)

    def _new_tokenizer(self, samples: list[Sample]) -> Tokenizer:
        texts = [content for s in samples for content in s.turns[1::2]]
        return Tokenizer.train(texts[::1 + len(texts) // TOKENIZER_TEXTS], self.config.vocab_size)

    def _encoded(self, samples: list[Sample]) -> Encoded:
        """All of a plain text is trained on; of a conversation, the answers alone."""
        data = Encoded(Ragged("i"), Ragged("b"), Pictures(self.tok))
        for number, sample in enumerate(samples):
            if sample.objects and not sample.images:
                data.pictures.add(number, sample)
                ids, labels = with_picture(sample, self.speech, self.tok, self.rng(0, number))
            else:
                ids, labels = self.tok.chat(sample.messages, [], [], sample.untrained)
            size = min(len(ids), self.config.max_length)
            data.ids.add(ids[:size])
            data.trained.add([label != IGNORE for label in labels[:size - 1]] + [False])
        return data

    def _listened(self) -> Heard:
        """What `audio_encoder` hears in the samples of `clips` that have one clip and no image."""
        heard = Heard(self.config.audio_encoder, self.tok, self.config.seed)
        samples = self.usable(self.config.clips, lambda s: len(s.audios) == 1 and not s.images,
                              'one clip and no image in each sample of "clips"')
        self.load_media(samples, "clips", heard.add)
        return heard

    def batches(self, epoch: int) -> list[list[int]]:
        """Random samples. Numbers from `len(train)` on are readings of speech."""
        order = self.rng(epoch).permutation(len(self.train) + self.readings)
        return [order[i:i + self.config.batch_size] for i in range(0, len(order), self.config.batch_size)]

    def batch(self, numbers, epoch: int):
        rows, cells = [], []
        for number in map(int, numbers):
            if number < len(self.train):
                rows.append(self.data.row(number))
                if number in self.data.pictures:
                    cells.append(self.data.pictures.cells(number, self.rng(epoch, number)))
            elif self.heard:
                row, frames = self.heard.row((number + epoch * self.readings) % len(self.heard))
                rows.append(row)
                cells.append(frames)
            else:
                rows.append(self.speech.reading(self.rng(epoch, number)))
        return self._packed(rows, cells, self.rng(epoch, int(numbers[0])))

    def _packed(self, rows: list[Row], cells: list[Cells], rng: np.random.Generator):
        """A batch, what is in its pictures, and noise for their tokens."""
        noise = rng.standard_normal((sum(len(c.starts) for c in cells), self.model.arch.width), np.float32)
        return pack(rows, self.tok.pad), Cells.joined(cells) if cells else None, torch.from_numpy(noise)

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        return self._score(*batch, device)[0], batch[0].answer_tokens

    def _score(self, batch: Batch, cells: Cells | None, noise: torch.Tensor,
               device) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over answer tokens, and how many of them are predicted exactly."""
        batch = batch.to(device)
        embeds = self.model.embed(batch.ids)
        if cells is not None:
            table = self.model.embed_tokens.weight
            tokens, weights, starts = (torch.from_numpy(part).to(device) for part in cells)
            shown = F.embedding_bag(tokens, table, starts, mode="sum", per_sample_weights=weights)
            shown = shown + NOISE * table.detach().std() * noise.to(device)
            places = (batch.ids == self.tok.image).nonzero()[:, 0]
            embeds = embeds.index_copy(0, places, shown.to(embeds.dtype))
        hidden = self.model.hidden(embeds, batch.layout, batch.answers)
        return answer_loss(self.model, hidden, batch.labels[batch.answers])

    def evaluate(self, device) -> dict:
        """Next-token accuracy on held-out text and pictures, and on readings of speech never seen."""
        pictures = [i for i in range(len(self.val)) if i in self.val_data.pictures]
        texts = [i for i in range(len(self.val)) if i not in self.val_data.pictures]
        groups = {"text_acc": [(self.val_data.row(i), []) for i in texts],
                  "picture_acc": [(self.val_data.row(i), [self.val_data.pictures.cells(i, self.rng(0, i))])
                                  for i in pictures],
                  "reading_acc": [(self.speech.reading(self.rng(0, i)), []) for i in range(200)]
                  if self.speech.texts else []}
        return {name: self._accuracy(group, device) for name, group in groups.items() if group}

    def _accuracy(self, group: list[tuple[Row, list[Cells]]], device) -> float:
        hits = count = 0
        for start in range(0, len(group), 64):
            part = group[start:start + 64]
            rows, pictures = [row for row, _ in part], [c for _, cells in part for c in cells]
            batch = self._packed(rows, pictures, self.rng(0))
            hits, count = hits + int(self._score(*batch, device)[1]), count + batch[0].answer_tokens
        return hits / max(count, 1)

    def content(self) -> dict:
        return {**checkpoint.part(self.model), "tokenizer": self.tok.json_text}
