"""Frozen features: what frozen encoders make of each medium, computed once and kept."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

from omni.audio import MediaError
from omni.batch import Sample
from omni.collate import MediaReader, pad_mels
from omni.config import UserError
from omni.model import OmniModel

GROUP = 32  # media encoded together


def unusable_media(samples: Iterable[Sample], reader: MediaReader, what: str) -> dict[str, str]:
    """Read every medium of `samples` once; returns {path: reason} of those that can't be used."""
    media = [(reader.pixels, p) for p in dict.fromkeys(p for s in samples for p in s.images)]
    media += [(reader.mel, p) for p in dict.fromkeys(p for s in samples for p in s.audios)]
    bad = {}
    for read, path in tqdm(media, desc=f"checking {what}", mininterval=2, disable=None, leave=False):
        try:
            read(path)
        except MediaError as err:
            bad[path] = str(err)
    return bad


class FeatureStore:
    """Features of pictures and clips by (path, take), in half precision in main memory.

    They are computed in groups of a fixed make-up, so they come out the same to the bit whenever a run is
    resumed.
    """

    def __init__(self, model: OmniModel, reader: MediaReader, limit_gb: float):
        self.model, self.reader, self.limit = model, reader, limit_gb * 2 ** 30
        self._images: dict[tuple[str, int], torch.Tensor] = {}
        self._audios: dict[tuple[str, int], torch.Tensor] = {}
        self.bytes = 0

    def image(self, path: str, take: int) -> torch.Tensor:
        """(P, vision width)."""
        return self._images[path, take].float()

    def audio(self, path: str, take: int) -> torch.Tensor:
        """(S, audio width)."""
        return self._audios[path, take].float()

    @torch.inference_mode()
    def add(self, samples: Iterable[Sample], takes: int, what: str) -> dict[str, str]:
        """Read and encode the media of `samples` in `takes` versions; returns {path: reason} of the bad."""
        images = dict.fromkeys(p for s in samples for p in s.images)
        audios = dict.fromkeys(p for s in samples for p in s.audios)
        todo = [(self._images, p, t) for p in images for t in range(takes) if (p, t) not in self._images]
        todo += [(self._audios, p, t) for p in audios for t in range(takes) if (p, t) not in self._audios]
        bad: dict[str, str] = {}
        with tqdm(total=len(todo), desc=f"features of {what}", unit="media", mininterval=2, disable=None,
                  leave=False) as bar:
            for store in (self._images, self._audios):
                keys = [(p, t) for s, p, t in todo if s is store]
                for start in range(0, len(keys), GROUP):
                    group = keys[start:start + GROUP]
                    self._encode(store, group, bad)
                    bar.update(len(group))
                    if self.bytes > self.limit:
                        raise UserError(
                            f"the frozen features need more than feature_cache_gb "
                            f"({self.limit / 2 ** 30:g}): raise it, lower augment_takes, "
                            "or set feature_cache_gb to 0 to encode every batch anew")
        return bad

    def _encode(self, store, keys: list[tuple[str, int]], bad: dict[str, str]) -> None:
        is_image = store is self._images
        read = self.reader.pixels if is_image else self.reader.mel
        device = next(self.model.parameters()).device
        media = {}
        for path, take in keys:
            try:
                if path not in bad:
                    media[path, take] = read(path, take)
            except MediaError as err:
                bad[path] = str(err)
        if not media:
            return
        if is_image:
            features = self.model.encode_images(torch.stack(list(media.values())).to(device))
        else:
            mels, lengths = pad_mels(list(media.values()))
            features, lengths = self.model.encode_audio(mels.to(device), lengths.to(device))
            features = features.split(lengths.tolist())
        for key, feature in zip(media, features, strict=True):
            store[key] = feature.to("cpu", torch.float16, copy=True)
            self.bytes += store[key].nbytes
