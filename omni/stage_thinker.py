"""Stage A: the Thinker, by next-token prediction."""

import numpy as np
import torch
from torch.nn import functional as F

from omni import checkpoint
from omni.batch import AUDIO, IGNORE, Batch, Sample
from omni.config import PretrainConfig, ThinkerArch, build
from omni.stage import Stage
from omni.tasks import normalise_words
from omni.thinker import Thinker
from omni.tokenizer import ASSISTANT, USER, SpeechPieces, Tokenizer

READING_PROMPTS = ("Transcribe the audio.", "Transcribe.", "What is said?", "Write down what you hear.")


class ThinkerStage(Stage):
    """A: next-token prediction over text, of which `reading_share` is reading noisy pieces of speech.

    A reading sample is a sentence as an audio encoder would name it: its pieces stuttered, lost, mistaken and
    spaced by silence (the `<audio>` token), then the instruction and the sentence. A Thinker that has learned
    to read these hears after very few clips: its projector need only find the pieces' embeddings.
    """

    kind = "thinker"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.val = self.read(config.train), self.read(config.val)
        texts = [content for s in self.train for _, content in s.messages]
        self.tok = Tokenizer.train(texts, config.vocab_size)
        self.spoken = [t for t in dict.fromkeys(texts)
                       if 2 <= len(t.split()) <= 12 and t.split() == normalise_words(t)]
        self.pieces = SpeechPieces(self.spoken, config.speech_pieces)
        self.piece_ids = [self.tok.encode(self.pieces.text(k)) for k in range(len(self.pieces))]
        spoken = set(self.spoken)
        self.questions = [s for s in self.train if len(s.messages) == 2 and s.messages[0][1] in spoken]
        self.encoded = [self._encode(s) for s in self.train]
        self.encoded_val = [self._encode(s) for s in self.val]
        self.lengths = [len(ids) for ids in self.encoded]
        arch = build(ThinkerArch, {**config.arch, "vocab_size": len(self.tok)}, "arch")
        self.model = Thinker(arch)

    def _encode(self, sample: Sample) -> list[int]:
        return self.tok.chat(sample.messages, [], [])[0][:self.config.max_length]

    def reading(self, rng: np.random.Generator) -> list[int]:
        """Ids of one reading sample: a transcription, or a spoken question with its answer."""
        if self.questions and rng.random() < 0.3:
            sample = self.questions[rng.integers(len(self.questions))]
            said, answer = sample.messages[0][1], sample.answer
            prompt = "Answer the question." if rng.random() < 0.5 else ""
        else:
            said = answer = self.spoken[rng.integers(len(self.spoken))]
            prompt = READING_PROMPTS[rng.integers(len(READING_PROMPTS))]
        ids = self.tok.ids
        return [ids[USER], *self.noisy(self.pieces.encode(said), rng), *self.tok.encode(prompt), self.tok.end,
                ids[ASSISTANT], *self.tok.encode(answer), self.tok.end]

    def noisy(self, numbers: list[int], rng: np.random.Generator) -> list[int]:
        """Pieces as a CTC encoder spells them: about half of the frames are silence, 8 % lost or mistaken."""
        silence, frames = self.tok.ids[AUDIO], []
        for number in numbers:
            frames += [silence] * rng.poisson(0.9)
            luck = rng.random()
            if luck < 0.04:
                continue
            if luck < 0.08:
                number = rng.integers(len(self.pieces))
            frames += self.piece_ids[number] * (1 + (rng.random() < 0.25))
        return frames + [silence] * (1 + rng.poisson(0.9))

    def batch(self, numbers, epoch: int) -> Batch:
        """The samples of these numbers, or, for `reading_share` of the batches, as many reading samples."""
        share = self.config.reading_share if self.spoken else 0.0
        if self.rng(epoch, int(numbers[0])).random() < share:  # a whole batch: their lengths are alike
            return self._pad([self.reading(self.rng(epoch, int(i))) for i in numbers])
        return self._pad([self.encoded[i] for i in numbers])

    def _pad(self, rows: list[list[int]]) -> Batch:
        ids = torch.full((len(rows), max(map(len, rows))), self.tok.pad)
        labels = torch.full_like(ids, IGNORE)
        for b, row in enumerate(rows):
            ids[b, :len(row)] = torch.tensor(row)
            labels[b, :len(row) - 1] = ids[b, 1:len(row)]
        # Silence is given, not predicted: it would drown the rest.
        labels[labels == self.tok.audio] = IGNORE
        return Batch(ids, labels, torch.tensor([len(row) for row in rows]))

    def loss(self, batch: Batch, device) -> tuple[torch.Tensor, torch.Tensor]:
        batch = batch.to(device)
        known = batch.labels != IGNORE
        logits = self.model.logits(self.model.hidden(self.model.embed_tokens(batch.input_ids))[known])
        return F.cross_entropy(logits.float(), batch.labels[known], reduction="sum"), known.sum()

    def evaluate(self, device) -> dict:
        sums = {}
        readings = [self.reading(self.rng(0, i)) for i in range(200)] if self.spoken else []
        for name, rows in (("loss", self.encoded_val), ("reading_loss", readings)):
            parts = [self.loss(self._pad(rows[i:i + 64]), device) for i in range(0, len(rows), 64)]
            if parts:
                sums[name] = float(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
        return sums

    def content(self) -> dict:
        return {**checkpoint.part(self.model), "tokenizer": self.tok.json_text}
