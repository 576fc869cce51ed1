"""Stage A: the Thinker, by next-token prediction."""

import numpy as np
import torch

from omni.base import checkpoint
from omni.base.config import PretrainConfig, ThinkerArch, build
from omni.data.batch import IGNORE, Batch
from omni.data.packing import pack
from omni.data.sample import AUDIO, Sample
from omni.data.tokenizer import ASSISTANT, USER, SpeechPieces, Tokenizer
from omni.eval.grading import normalise_words
from omni.model.loss import answer_loss
from omni.model.thinker import Thinker
from omni.pretrain.stage import Stage

READING_PROMPTS = ("Transcribe the audio.", "Transcribe.", "What is said?", "Write down what you hear.")


class ThinkerStage(Stage):
    """A: next-token prediction. In `reading_share` of the batches it learns to read noisy subwords.

    A reading sample is a sentence as an audio encoder might output it: pieces repeated, lost, mistaken and
    separated by silence (the `<audio>` token), then the instruction and the sentence. After that the Thinker
    needs few clips to understand speech: the projector only has to map audio to embeddings of pieces.
    """

    kind = "thinker"

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.train, self.val = self.read(config.train), self.read(config.val)
        texts = [content for s in self.train for _, content in s.messages]
        self.tok = Tokenizer.train(texts, config.vocab_size)
        self.spoken = [t for t in dict.fromkeys(texts)
                       if 2 <= len(t.split()) <= 12 and t.split() == normalise_words(t)]
        self.words = sorted({word for text in self.spoken for word in text.split()})
        self.pieces = SpeechPieces(self.spoken, config.speech_pieces)
        self.piece_ids = [self.tok.encode(self.pieces.text(k)) for k in range(len(self.pieces))]
        spoken = set(self.spoken)
        self.questions = [s for s in self.train if len(s.messages) == 2 and s.messages[0][1] in spoken]
        self.encoded = [self._encode(s) for s in self.train]
        self.encoded_val = [self._encode(s) for s in self.val]
        self.lengths = [len(ids) for ids, _ in self.encoded]
        arch = build(ThinkerArch, {**config.arch, "vocab_size": len(self.tok)}, "arch")
        self.model = Thinker(arch)

    def _encode(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Ids and labels. All of a plain text is trained on; of a conversation, the answers alone."""
        ids, labels = self.tok.chat(sample.messages, [], [], sample.untrained)
        return ids[:self.config.max_length], labels[:self.config.max_length]

    def reading(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Ids and labels of one reading sample: a transcription, or a spoken question with its answer.

        Half of the transcriptions are random words, so that they can't be guessed but only read.
        """
        prompt = READING_PROMPTS[rng.integers(len(READING_PROMPTS))]
        kind = rng.random()
        if kind < 0.5:
            said = answer = " ".join(rng.choice(self.words, size=rng.integers(3, 8)).tolist())
        elif kind < 0.75 or not self.questions:
            said = answer = self.spoken[rng.integers(len(self.spoken))]
        else:
            sample = self.questions[rng.integers(len(self.questions))]
            said, answer = sample.messages[0][1], sample.answer
            prompt = "Answer the question." if rng.random() < 0.5 else ""
        ids = self.tok.ids
        frames = self.noisy(self.pieces.encode(said), rng)
        prompt_ids = [ids[USER], *frames, *self.tok.encode(prompt), self.tok.end]
        answer_ids = [*self.tok.encode(answer), self.tok.end]
        labels = [IGNORE] * len(prompt_ids) + answer_ids + [IGNORE]
        return [*prompt_ids, ids[ASSISTANT], *answer_ids], labels

    def noisy(self, numbers: list[int], rng: np.random.Generator) -> list[int]:
        """Tokens as of a CTC encoder: about half are silence, 8 % of the pieces are lost or wrong."""
        silence, frames = self.tok.ids[AUDIO], []
        for number in numbers:
            frames += [silence] * rng.poisson(0.9)
            error = rng.random()
            if error < 0.04:
                continue
            if error < 0.08:
                number = rng.integers(len(self.pieces))
            frames += self.piece_ids[number] * (1 + (rng.random() < 0.25))
        return frames + [silence] * (1 + rng.poisson(0.9))

    def batch(self, numbers, epoch: int) -> Batch:
        """The samples with these numbers; `reading_share` of the batches are reading samples instead."""
        share = self.config.reading_share if self.spoken else 0.0
        if self.rng(epoch, int(numbers[0])).random() < share:  # the whole batch: similar lengths
            return pack([self.reading(self.rng(epoch, int(i))) for i in numbers], self.tok.pad)
        return pack([self.encoded[i] for i in numbers], self.tok.pad)

    def loss(self, batch: Batch, device) -> tuple[torch.Tensor, int]:
        return self._score(batch.to(device))[0], batch.answer_tokens

    def _score(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over answer tokens, and how many of them are predicted exactly."""
        hidden = self.model.hidden(self.model.embed_tokens(batch.ids), batch.layout, batch.answers)
        return answer_loss(self.model, hidden, batch.labels[batch.answers])

    def evaluate(self, device) -> dict:
        """Next-token accuracy on held-out text, and on reading samples never seen."""
        metrics = {}
        readings = [self.reading(self.rng(0, i)) for i in range(200)] if self.spoken else []
        for name, rows in (("text_acc", self.encoded_val), ("reading_acc", readings)):
            hits = count = 0
            for start in range(0, len(rows), 64):
                batch = pack(rows[start:start + 64], self.tok.pad).to(device)
                hits, count = hits + int(self._score(batch)[1]), count + batch.answer_tokens
            if count:
                metrics[name] = hits / count
        return metrics

    def content(self) -> dict:
        return {**checkpoint.part(self.model), "tokenizer": self.tok.json_text}
