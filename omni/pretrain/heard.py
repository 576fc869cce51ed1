"""What an audio encoder hears in clips, told in a Thinker's words: for stage A.

Each frame has the words of the pieces that the CTC head finds likely there, which is what the audio projector
gives later (`projector.py`). So the Thinker learns from the encoder's own mistakes which words were said.
"""

import numpy as np
import torch
from tokenizers import decoders

from omni.base import checkpoint
from omni.base.config import AudioArch
from omni.base.errors import UserError
from omni.data import audio
from omni.data.packing import Row
from omni.data.sample import Sample
from omni.data.tokenizer import Tokenizer
from omni.model.audio_encoder import AudioEncoder
from omni.pretrain.audio_encoder import mel_power
from omni.pretrain.ragged import Ragged
from omni.pretrain.reading import Cells

LIKELY = 0.02  # pieces below this probability are dropped
VARIED = 0.9  # share of the clips that are augmented


class Heard:
    """Clips by number, each with its sample and the likely pieces of its frames.

    `encoder_file` is a checkpoint of stage B with its CTC head. Without one, UserError.
    """

    def __init__(self, encoder_file: str, tok: Tokenizer, seed: int):
        before = checkpoint.load(encoder_file, "audio_encoder", "make it with stage B")
        if "ctc_head" not in before:
            raise UserError(f'{encoder_file}: has no CTC head; make it with stage B')
        self.encoder, _ = checkpoint.build_part(AudioEncoder, AudioArch, before, "audio_encoder",
                                                encoder_file)
        self.encoder.eval()
        self.head, self.tok, self.seed, self.samples = before["ctc_head"], tok, seed, []
        texts = [decoders.ByteLevel().decode([piece]) for piece in before["pieces"]]
        self.piece_tokens = [*map(tok.encode, texts), [tok.audio]]  # the last one is silence
        self._frames = Ragged("i")  # how many pieces each frame of a clip has
        self._pieces, self._shares = Ragged("H"), Ragged("f")

    def __len__(self) -> int:
        return len(self.samples)

    @torch.no_grad()
    def add(self, sample: Sample) -> None:
        """Listen to the only clip of a sample and keep it. MediaError if it can't be read."""
        rng = np.random.default_rng([self.seed, len(self.samples)])
        power = mel_power(sample.audios[0])
        if rng.random() < VARIED:
            power = audio.augment(power, rng)
        mel = audio.log_mel(power, self.encoder.arch.level)
        features, _ = self.encoder(mel[None], torch.tensor([len(mel)]))
        chances = (features[0] @ self.head["weight"].T + self.head["bias"]).softmax(-1)
        likely = chances >= LIKELY
        self.samples.append(sample)
        self._frames.add(likely.sum(1).tolist())
        self._pieces.add(likely.nonzero()[:, 1].tolist())
        self._shares.add(chances[likely].tolist())

    def row(self, number: int) -> tuple[Row, Cells]:
        """Ids and labels of a clip's sample, and what is heard in its frames.

        The frames have the placeholder of pictures: both are told, and in the batch's order.
        """
        frames, at = self._frames[number], 0
        pieces, shares = self._pieces[number], self._shares[number]
        tokens: list[int] = []
        weights: list[float] = []
        starts: list[int] = []
        for count in frames:
            starts.append(len(tokens))
            for piece, share in zip(pieces[at:at + count], shares[at:at + count], strict=True):
                tokens += self.piece_tokens[piece]
                weights += [share] * len(self.piece_tokens[piece])
            at += count
        sample = self.samples[number]
        ids, labels = self.tok.chat(sample.messages, [], [len(frames)], sample.untrained)
        begin = ids.index(self.tok.audio)
        ids[begin:begin + len(frames)] = [self.tok.image] * len(frames)
        return (ids, labels), Cells(*(np.array(part, kind) for part, kind in
                                    ((tokens, np.int64), (weights, np.float32), (starts, np.int64))))

