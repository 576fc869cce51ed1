"""Reads a picture or a clip as an encoder wants it, as it is or in a varied take."""

from zlib import crc32

import numpy as np
import torch

from omni.data import audio, image


class MediaReader:
    """Reads a picture or a clip as an encoder wants it. Take 0 is the medium as it is, higher takes are
    varied.

    A take is a pure function of (seed, take, file name), so any process gets the same one at any time.
    """

    def __init__(self, image_size: int, seed: int = 0, level: str = "clip"):
        self.image_size, self.seed, self.level = image_size, seed, level

    def picture(self, path: str) -> torch.Tensor:
        """(3, image_size, image_size) as it is."""
        return image.load(path, self.image_size)

    def power(self, path: str) -> torch.Tensor:
        """(F, MELS) mel power as it is."""
        return audio.mel_power(audio.load(path))

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        """(3, image_size, image_size)."""
        picture = self.picture(path)
        return image.augment(picture, self.rng(path, take)) if take else picture

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        """(F, MELS) log-mel."""
        power = self.power(path)
        return audio.log_mel(audio.augment(power, self.rng(path, take)) if take else power, self.level)

    def frames(self, path: str, take: int, plain_frames: int) -> int:
        """Mel frames of a take of a clip, of which take 0 has `plain_frames`. Nothing is decoded."""
        if not take:
            return plain_frames
        speed = self.rng(path, take).uniform(0.87, 1.18)  # what `audio.augment` draws first
        return max(8, round(plain_frames / speed))

    def rng(self, path: str, take: int) -> np.random.Generator:
        name = path.rsplit("/", 1)[-1].encode("utf-8", "backslashreplace")  # a name may be no UTF-8
        return np.random.default_rng([self.seed, take, crc32(name)])
