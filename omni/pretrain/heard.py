"""For stage A: what an audio encoder hears in clips, in a Thinker's words.

A frame is the mean of the words of its pieces, weighted by the CTC head's probabilities. The audio projector
gives the same later (`projector.py`). So the Thinker learns to read the encoder's own mistakes.
"""

import numpy as np
import torch
from torch.nn import functional as F

from omni.data import audio
from omni.data.media_reader import MediaReader
from omni.data.packing import Row
from omni.data.sample import Sample
from omni.data.tokenizer import Tokenizer
from omni.model.load import load_encoder
from omni.pretrain.audio_encoder import VARIED, piece_texts
from omni.pretrain.ragged import Ragged
from omni.pretrain.reading import Cells

LIKELY = 0.02  # pieces below this probability are dropped


class Heard:
    """Samples with one clip each, by number, and the likely pieces of the clips' frames.

    `encoder_file` is a checkpoint of stage B. UserError if it has no CTC head.
    """

    def __init__(self, encoder_file: str, tok: Tokenizer, seed: int):
        self.encoder, before = load_encoder(encoder_file, "audio_encoder")
        texts = piece_texts(before, encoder_file)
        self.encoder.eval()
        self.reader = MediaReader(None, self.encoder.arch, seed)
        self.head, self.tok, self.seed, self.samples = before["ctc_head"], tok, seed, []
        self.piece_tokens = [*map(tok.encode, texts), [tok.audio]]  # the last one is silence
        self._frames = Ragged("i")  # how many pieces each frame of a clip has
        self._pieces, self._probabilities = Ragged("H"), Ragged("f")

    def __len__(self) -> int:
        return len(self.samples)

    @torch.no_grad()
    def add(self, sample: Sample) -> None:
        """Listen to the only clip of a sample and keep it. MediaError if it can't be read."""
        rng = np.random.default_rng([self.seed, len(self.samples)])
        power = self.reader.power(sample.audios[0])
        if rng.random() < VARIED:
            power = audio.augment(power, rng, self.reader.max_frames)
        mel = self.reader.log_mel(power)
        features, _ = self.encoder(mel[None], torch.tensor([len(mel)]))
        probabilities = F.linear(features[0], self.head["weight"], self.head["bias"]).softmax(-1)
        likely = probabilities >= LIKELY
        self.samples.append(sample)
        self._frames.add(likely.sum(1).tolist())
        self._pieces.add(likely.nonzero()[:, 1].tolist())
        self._probabilities.add(probabilities[likely].tolist())

    def row(self, number: int) -> tuple[Row, Cells]:
        """Ids and labels of a clip's sample, and what is heard in its frames.

        The frames get the placeholder of pictures, since the words of both replace it in the same way.
        """
        frames, at = self._frames[number], 0
        pieces, probabilities = self._pieces[number], self._probabilities[number]
        tokens: list[int] = []
        weights: list[float] = []
        starts: list[int] = []
        for count in frames:
            starts.append(len(tokens))
            for i in range(at, at + count):
                tokens += self.piece_tokens[pieces[i]]
                weights += [probabilities[i]] * len(self.piece_tokens[pieces[i]])
            at += count
        sample = self.samples[number]
        ids, labels = self.tok.chat(sample.messages, [], [len(frames)], sample.untrained)
        begin = ids.index(self.tok.audio)
        ids[begin:begin + len(frames)] = [self.tok.image] * len(frames)
        return (ids, labels), Cells(*(np.array(part, kind) for part, kind in
                                    ((tokens, np.int64), (weights, np.float32), (starts, np.int64))))
