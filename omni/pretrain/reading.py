"""What stage A reads in place of media: words at the places of a picture, and noisy pieces of speech.

A Thinker that can read these needs few pictures and clips afterwards: the projectors only have to map the
encoders' features to embeddings of words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from omni.data.sample import AUDIO, IMAGE, Sample
from omni.data.speech_pieces import SpeechPieces
from omni.data.tokenizer import Tokenizer
from omni.eval.grading import normalise_words
from omni.pretrain.ragged import Ragged

GRID = 4  # tokens a side of a picture of the shipped vision encoder: 128 pixels, patches of 16, merged 2 by 2
CELLS = GRID * GRID
BLUR = 0.25  # width of the edge between two cells, in cells
LOST, UNSURE = 0.005, 0.1  # shares of a cell's words; an unsure word has a random one beside it
FAINT = 0.3  # the greatest weight of that random word, relative to the unsure one
# Weight of the words of what fills the picture. Norms divide a cell by its length, so beside a light ground
# half a thing would look like a whole one.
GROUND = 1.5
PROMPTS = ("Transcribe the audio.", "Transcribe.", "What is said?", "Write down what you hear.")


class Middle:
    """The middle of each range, in place of a random number."""

    @staticmethod
    def uniform(low: float, high: float, size) -> np.ndarray:
        return np.full(size, (low + high) / 2)


class Cells(NamedTuple):
    """What is in the cells of some pictures, cell by cell: tokens with their weights."""

    tokens: np.ndarray  # (T,)
    weights: np.ndarray  # (T,)
    starts: np.ndarray  # (cells,) where the tokens of each cell begin

    @classmethod
    def joined(cls, pictures: "Sequence[Cells]") -> "Cells":
        before = np.cumsum([0] + [len(p.tokens) for p in pictures[:-1]])
        starts = [p.starts + count for p, count in zip(pictures, before, strict=True)]
        return cls(*(np.concatenate(parts) for parts in
                     ([p.tokens for p in pictures], [p.weights for p in pictures], starts)))


class Pictures:
    """Pictures, kept as objects with boxes. `cells` gives a picture's words, with errors as of an encoder."""

    def __init__(self, tok: Tokenizer):
        self.tok, self.words = tok, {}
        self.tokens = Ragged("i")  # of each word
        self._objects, self._row_of = Ragged("f"), {}  # an object: box, number of words, words

    def add(self, number: int, sample: Sample) -> None:
        """Keep the objects of the sample `number`."""
        flat: list[float] = []
        for words, box in sample.objects:
            flat += [*box, len(words), *map(self._number, words)]
        self._row_of[number] = len(self._objects)
        self._objects.add(flat)

    def _number(self, word: str) -> int:
        if word not in self.words:
            self.words[word] = len(self.words)
            self.tokens.add(self.tok.encode(f" {word}"))
        return self.words[word]

    def __contains__(self, number: int) -> bool:
        return number in self._row_of

    def cells(self, number: int, rng: np.random.Generator) -> Cells:
        """The words of the picture of sample `number` in each cell, some lost and some unsure.

        The right word always has the greatest weight, so an answer can be read and need not be guessed.
        """
        flat, found, at = self._objects[self._row_of[number]], [], 0
        while at < len(flat):
            size = int(flat[at + 4])
            found.append((flat[at:at + 4], [int(word) for word in flat[at + 5:at + 5 + size]]))
            at += 5 + size
        weights = cell_weights(np.array([box for box, _ in found], np.float32), rng)  # (objects, CELLS)
        tokens: list[list[int]] = [[] for _ in range(CELLS)]
        shares: list[list[float]] = [[] for _ in range(CELLS)]
        for item, cell in zip(*weights.nonzero(), strict=True):
            for word in found[item][1]:
                error, told = rng.random(), [(word, weights[item, cell])]
                if error < LOST:
                    continue
                if error < LOST + UNSURE:
                    told.append((rng.integers(len(self.words)), told[0][1] * rng.uniform(0, FAINT)))
                for word, weight in told:
                    tokens[cell] += self.tokens[word]
                    shares[cell] += [weight] * len(self.tokens[word])
        starts = np.cumsum([0] + [len(t) for t in tokens[:-1]])
        return Cells(np.array(sum(tokens, []), np.int64), np.array(sum(shares, []), np.float32), starts)


def cell_weights(boxes: np.ndarray, rng: np.random.Generator | type[Middle],
                 side: int = GRID) -> np.ndarray:
    """(n, 4) boxes -> (n, side * side): how much of each object a cell tells.

    An object is told in the cell of its center, so that objects can be counted. Near an edge of the cell the
    next one has a part, since an encoder can't tell exactly where a center is.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 * side  # in cells
    edges = np.array([-np.inf, *range(1, side), np.inf])
    across, down = (np.clip(beyond[:, :-1], 0, 1) * np.clip(1 - beyond[:, 1:], 0, 1) for beyond in
                    ((centers[:, i, None] - edges) / BLUR + 0.5 for i in (0, 1)))
    weights = down[:, :, None] * across[:, None]  # (n, rows, columns)
    weights *= rng.uniform(0.85, 1.15, weights.shape)
    whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 0.98
    weights[whole] = GROUND * rng.uniform(0.9, 1.1, (int(whole.sum()), side, side))
    return weights.reshape(len(boxes), side * side)


class Speech:
    """Sentences as an audio encoder might output them: pieces repeated, lost, mistaken, between silence."""

    def __init__(self, samples: Sequence[Sample], tok: Tokenizer, size: int | None):
        self.tok = tok
        texts = dict.fromkeys(s.answer for s in samples if len(s.turns) == 2)
        self.texts = [t for t in texts if 2 <= len(t.split()) <= 12 and t.split() == normalise_words(t)]
        self.words = sorted({word for text in self.texts for word in text.split() if word.isalpha()})
        self._known = {*self.words}
        self.questions = [(s.turns[1], s.answer) for s in samples
                          if len(s.turns) == 4 and s.turns[0] == "user" and self.understands(s.turns[1])]
        if self.texts:
            self.pieces = SpeechPieces.train(self.texts, size)
            self.piece_ids = [tok.encode(self.pieces.text(k)) for k in range(len(self.pieces))]

    def understands(self, text: str) -> bool:
        """Whether a text may be spoken: all its words are known."""
        return bool(self.texts) and self._known.issuperset(text.split())

    def reading(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Ids and labels of one reading: a transcription, or a spoken question with its answer.

        Most transcriptions are random words, so that they can't be guessed but only read.
        """
        prompt, kind = PROMPTS[rng.integers(len(PROMPTS))], rng.random()
        if kind < 0.45:
            said = answer = " ".join(rng.choice(self.words, size=rng.integers(3, 8)).tolist())
        elif kind < 0.7 or not self.questions:
            said = answer = self.texts[rng.integers(len(self.texts))]
        else:
            said, answer = self.questions[rng.integers(len(self.questions))]
            prompt = "Answer the question." if rng.random() < 0.5 else ""
        return self.spoken((("user", f"{AUDIO}{prompt}"), ("assistant", answer)), said, [], rng)

    def spoken(self, messages, said: str, images: list[int],
               rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Ids and labels of messages with one <audio>, in whose place is what was `said`."""
        frames = self.noisy(self.pieces.encode(said), rng)
        ids, labels = self.tok.chat(messages, images, [len(frames)])
        begin = ids.index(self.tok.audio)
        ids[begin:begin + len(frames)] = frames
        return ids, labels

    def noisy(self, numbers: list[int], rng: np.random.Generator) -> list[int]:
        """Tokens as of a CTC encoder: about half are silence, 8 % of the pieces are lost or wrong."""
        silence, frames = self.tok.audio, []
        for number in numbers:
            frames += [silence] * rng.poisson(0.9)
            error = rng.random()
            if error < 0.04:
                continue
            if error < 0.08:
                number = rng.integers(len(self.pieces))
            frames += self.piece_ids[number] * (1 + (rng.random() < 0.25))
        return frames + [silence] * (1 + rng.poisson(0.9))


def with_picture(sample: Sample, speech: Speech, tok: Tokenizer,
                 rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Ids and labels of a sample with its picture, and at times with its first question as speech."""
    (_, question), *later = sample.messages
    if rng.random() < 0.4 and speech.understands(question):
        content = (IMAGE + AUDIO, AUDIO + IMAGE, f"{IMAGE}{AUDIO}Answer the question.")[rng.integers(3)]
        return speech.spoken((("user", content), *later), question, [CELLS], rng)
    content = IMAGE + question if rng.random() < 0.8 else question + IMAGE
    return tok.chat((("user", content), *later), [CELLS], [], sample.untrained)
