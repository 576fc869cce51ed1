"""Reads an image or a clip as its encoder needs it, plain or augmented."""

import math
from zlib import crc32

import numpy as np
import torch

from omni.base.config import AudioArch, SiglipArch, VisionArch, WhisperArch
from omni.data import audio, image, media, whisper_mel


class MediaReader:
    """Reads takes of images and clips for the encoders of these shapes (None: no such medium is read).

    Take 0 is the plain medium, higher takes are augmented.

    A take is a pure function of (seed, take, file name), so every process gets the same one at any time. All
    methods that read a file raise MediaError if it can't be used.
    """

    def __init__(self, vision: VisionArch | SiglipArch | None, audio: AudioArch | WhisperArch | None,
                 seed: int = 0):
        self.vision, self.audio, self.seed = vision, audio, seed
        self.whisper = isinstance(audio, WhisperArch)
        self.max_frames = whisper_mel.max_frames(audio) if self.whisper else math.inf  # of a clip

    def plain_image(self, path: str) -> torch.Tensor:
        """The plain image: (3, image_size, image_size)."""
        squash = self.vision.resample if isinstance(self.vision, SiglipArch) else None
        return image.load(path, self.vision.image_size, squash)

    def power(self, path: str) -> torch.Tensor:
        """The plain clip's mel power: (F, mels)."""
        wave = audio.load(path)
        return whisper_mel.mel_power(wave, self.audio) if self.whisper else audio.mel_power(wave)

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        """A take of an image: (3, image_size, image_size)."""
        pixels = self.plain_image(path)
        return image.augment(pixels, self.rng(path, take)) if take else pixels

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        """The log-mel of a take of a clip: (F, mels). F differs from take to take, see `frames`."""
        power = self.power(path)
        if take:
            power = audio.augment(power, self.rng(path, take), self.max_frames)
        return self.log_mel(power)

    def log_mel(self, power: torch.Tensor) -> torch.Tensor:
        """The log-mel of a mel power (F, mels), as the encoder needs it."""
        return whisper_mel.log_mel(power) if self.whisper else audio.log_mel(power, self.audio.level)

    def plain_frames(self, samples: int) -> int:
        """len(mel(path, 0)) of a clip with `samples` samples at 16 kHz."""
        return whisper_mel.mel_frames(samples, self.audio) if self.whisper else audio.mel_frames(samples)

    def frames(self, path: str, take: int, plain_frames: int) -> int:
        """len(mel(path, take)), without decoding the clip again. `plain_frames` is len(mel(path, 0))."""
        if take:
            return audio.augmented_frames(plain_frames, self.rng(path, take), self.max_frames)
        return plain_frames

    def rng(self, path: str, take: int) -> np.random.Generator:
        """A new random generator for a take of a medium."""
        return np.random.default_rng([self.seed, take, crc32(media.name(path))])
