"""Reads an image or a clip as its encoder needs it, plain or augmented."""

from zlib import crc32

import numpy as np
import torch

from omni.data import audio, image


class MediaReader:
    """Reads takes of images and clips. Take 0 is the plain medium, higher takes are augmented.

    A take is a pure function of (seed, take, file name), so every process gets the same one at any time. All
    methods that read a file raise MediaError if it can't be used.
    """

    def __init__(self, image_size: int, seed: int = 0, level: str = "clip"):
        self.image_size, self.seed, self.level = image_size, seed, level

    def plain_image(self, path: str) -> torch.Tensor:
        """The plain image: (3, image_size, image_size)."""
        return image.load(path, self.image_size)

    def power(self, path: str) -> torch.Tensor:
        """The plain clip's mel power: (F, MELS)."""
        return audio.mel_power(audio.load(path))

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        """A take of an image: (3, image_size, image_size)."""
        pixels = self.plain_image(path)
        return image.augment(pixels, self.rng(path, take)) if take else pixels

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        """The log-mel of a take of a clip: (F, MELS). F differs from take to take, see `frames`."""
        power = self.power(path)
        return audio.log_mel(audio.augment(power, self.rng(path, take)) if take else power, self.level)

    def frames(self, path: str, take: int, plain_frames: int) -> int:
        """len(mel(path, take)), without decoding the clip again. `plain_frames` is len(mel(path, 0))."""
        return audio.augmented_frames(plain_frames, self.rng(path, take)) if take else plain_frames

    def rng(self, path: str, take: int) -> np.random.Generator:
        """A new random generator for a take of a medium."""
        name = path.rsplit("/", 1)[-1].encode("utf-8", "backslashreplace")  # not every file name is UTF-8
        return np.random.default_rng([self.seed, take, crc32(name)])
