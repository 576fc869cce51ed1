"""Stage B: the audio encoder, by connectionist temporal classification."""

import torch
from tokenizers import decoders
from torch import nn
from torch.nn import functional as F

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.errors import UserError
from omni.data import audio
from omni.data.collate import pad_mels
from omni.data.media_reader import MediaReader
from omni.data.sample import Sample
from omni.data.speech_pieces import SpeechPieces
from omni.eval.grading import WordErrors, normalise_words, word_errors
from omni.model.audio_encoder import AudioEncoder
from omni.model.loss import ctc_frames
from omni.model.whisper import WhisperEncoder
from omni.pretrain.stage import Stage

VARIED = 0.9  # share of the clips that are augmented


def piece_texts(content: dict, path: str) -> list[str]:
    """What the CTC head of a stage B checkpoint outputs, as texts. UserError if it has no head."""
    if "ctc_head" not in content:
        raise UserError(f"{path}: has no CTC head; make it with stage B")
    return [decoders.ByteLevel().decode([piece]) for piece in content["pieces"]]


class AudioStage(Stage):
    """B: connectionist temporal classification (CTC, Graves et al. 2006) of transcripts as pieces.

    A new encoder of this project, or further training of one or of Whisper's (`start`).
    """

    kind = "audio_encoder"
    uses = {"arch", "speech_pieces", "start", "head_learning_rate"}

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        if config.head_learning_rate is not None and config.optimizer != "adamw":
            raise UserError(f'"head_learning_rate" has no effect with "optimizer": "{config.optimizer}"; '
                            "remove one of them")
        self.encoder = encoder = self.first_encoder(AudioEncoder, WhisperEncoder)
        if encoder.arch.ctc_outputs:
            raise UserError('"ctc_outputs" reorders features, and stage B needs their order; remove it')
        self.reader = MediaReader(None, encoder.arch, config.seed)
        self.varied_level = getattr(encoder.arch, "level", "clip") == "speech"
        train, self.lengths = self._clips(config.train, "training clips")
        val, _ = self._clips(config.val, "held-out clips")
        self.train, self.val = ([s.audios[0] for s in samples] for samples in (train, val))
        self.texts, self.val_texts = ([" ".join(normalise_words(s.transcript or s.answer)) for s in samples]
                                      for samples in (train, val))
        self.val_groups = [s.group or "known" for s in val]
        self.pieces = self._pieces()
        self.labels = [self.pieces.encode(t) for t in self.texts]
        self.model = nn.ModuleDict({"encoder": encoder,
                                    "head": nn.Linear(encoder.token_width, len(self.pieces) + 1)})
        if "ctc_head" in self.before and self.before["pieces"] == self.pieces.pieces:
            self.model["head"].load_state_dict(self.before["ctc_head"])
        self.blank = len(self.pieces)
        self.needed = [ctc_frames(labels) for labels in self.labels]
        fits = [i for i, frames in enumerate(self.lengths)
                if 0 < self.needed[i] <= self.encoder.lengths(frames)]
        if len(fits) < len(self.train):
            print(f"{len(self.train) - len(fits)} of {len(self.train)} clips are skipped: they have no "
                  "transcript, or fewer frames than pieces")
        self.texts, self.train, self.lengths, self.labels, self.needed = (
            [values[i] for i in fits]
            for values in (self.texts, self.train, self.lengths, self.labels, self.needed))
        if not self.train:
            raise UserError(f"{config.train}: no clip has a transcript that fits in its frames; "
                            "raise arch.frames_per_second")

    def _clips(self, paths: str | list[str], what: str) -> tuple[list[Sample], list[int]]:
        """The samples with one clip, and its number of mel frames.

        Each clip is decoded once here, to check it, and again whenever it is needed: the mels of many hours
        don't fit in memory, and decoding takes a tenth of a training step's time.
        """
        samples = self.usable(paths, lambda sample: len(sample.audios) == 1, "one clip")
        loaded = self.load_media(samples, what, lambda sample: len(self.reader.power(sample.audios[0])))
        return [sample for sample, _ in loaded], [frames for _, frames in loaded]

    def _pieces(self) -> SpeechPieces:
        """The start's, so that its CTC head is kept; new ones if it lacks a letter or has too many or few."""
        size = self.config.speech_pieces
        new = SpeechPieces.train(self.texts, size)
        if "ctc_head" not in self.before:
            return new
        known = SpeechPieces.of(self.before["pieces"])
        missing = sorted(letter for letter in {*"".join(self.texts)} if not known.spells(letter))
        if missing or size and not len(new) <= len(known) <= max(size, len(new)):
            why = (f"its pieces lack {' '.join(missing)}" if missing else
                   f"it has {len(known)} pieces, speech_pieces is {size}")
            print(f"the CTC head of {self.config.start} is replaced by a new one: {why}")
            return new
        print(f"the CTC head of {self.config.start} is kept, with its {len(known)} pieces")
        return known

    def batch(self, numbers, epoch: int):
        mels = []
        for i in numbers:
            rng, power = self.rng(epoch, int(i)), self.reader.power(self.train[i])
            if rng.random() < VARIED:
                varied = audio.augment(power, rng, self.reader.max_frames)
                # A faster take may have too few frames for its pieces.
                if self.encoder.lengths(len(varied)) >= self.needed[i]:
                    power = varied
            # Half of the clips are normalised as a whole, so that the encoder works with either level.
            by_clip = self.varied_level and rng.random() < 0.5
            mel = audio.log_mel(power, "clip") if by_clip else self.reader.log_mel(power)
            mels.append(audio.spec_augment(mel, rng))
        return *pad_mels(mels), [self.labels[i] for i in numbers]

    def loss(self, batch, device) -> tuple[torch.Tensor, int]:
        mels, lengths, labels = batch
        features, lengths = self.encoder(mels.to(device), lengths.to(device))
        scores = self.model["head"](features).float().log_softmax(-1).transpose(0, 1)  # (S, C, pieces + 1)
        targets = torch.tensor([n for row in labels for n in row], device=device)
        target_lengths = torch.tensor([len(row) for row in labels], device=device)
        loss = F.ctc_loss(scores, targets, lengths, target_lengths, blank=self.blank, reduction="sum")
        return loss, len(targets)

    def evaluate(self, device) -> dict:
        """Corpus word error rate of greedy decoding, for each group of held-out clips."""
        sums: dict[str, WordErrors] = {}
        for start in range(0, len(self.val), 64):
            mels, lengths = pad_mels([self.reader.mel(clip) for clip in self.val[start:start + 64]])
            features, lengths = self.encoder(mels.to(device), lengths.to(device))
            best = self.model["head"](features).argmax(-1)
            for row, length, text, group in zip(best.tolist(), lengths.tolist(), self.val_texts[start:],
                                                self.val_groups[start:], strict=False):
                row = row[:length]
                kept = [k for t, k in enumerate(row) if k != self.blank and (t == 0 or row[t - 1] != k)]
                sums[group] = sums.get(group, WordErrors()) + word_errors(self.pieces.decode(kept), text)
        return {f"wer_{group}": errors.rate for group, errors in sums.items()}

    def content(self) -> dict:
        return {**checkpoint.part(self.encoder), "pieces": self.pieces.pieces,
                "ctc_head": self.model["head"].state_dict()}
