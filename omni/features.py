"""Frozen features: what frozen encoders make of each medium, computed once and kept."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

from omni.audio import MediaError
from omni.batch import Sample
from omni.collate import pad_mels
from omni.config import UserError
from omni.decode import Decoder
from omni.model import OmniModel

GROUP = 32  # media encoded together


def unusable_media(samples: Iterable[Sample], decoder: Decoder, what: str) -> dict[str, str]:
    """Read every medium of `samples` once; returns {path: reason} of those that can't be used."""
    requests = [("pixels", p, 0) for p in dict.fromkeys(p for s in samples for p in s.images)]
    requests += [("mel", p, 0) for p in dict.fromkeys(p for s in samples for p in s.audios)]
    bar = tqdm(decoder.read(requests), desc=f"checking {what}", total=len(requests), mininterval=2,
               disable=None, leave=False)
    return {path: str(medium) for (_, path, _), medium in zip(requests, bar, strict=True)
            if isinstance(medium, MediaError)}


class FeatureStore:
    """Features of pictures and clips by (path, take), in half precision in main memory.

    They are computed in groups of a fixed make-up, so they come out the same to the bit whenever a run is
    resumed.
    """

    def __init__(self, model: OmniModel, decoder: Decoder, limit_gb: float):
        self.model, self.decoder, self.limit = model, decoder, limit_gb * 2 ** 30
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
        bad: dict[str, str] = {}
        for store, method, paths in (
                (self._images, "pixels", dict.fromkeys(p for s in samples for p in s.images)),
                (self._audios, "mel", dict.fromkeys(p for s in samples for p in s.audios))):
            todo = [(method, p, t) for p in paths for t in range(takes) if (p, t) not in store]
            bar = tqdm(self.decoder.read(todo), desc=f"features of {what}", total=len(todo), unit="media",
                       mininterval=2, disable=None, leave=False)
            group: dict[tuple[str, int], torch.Tensor] = {}
            for number, ((_, path, take), medium) in enumerate(zip(todo, bar, strict=True), 1):
                if isinstance(medium, MediaError):
                    bad[path] = str(medium)
                else:
                    group[path, take] = medium
                if number % GROUP == 0 or number == len(todo):
                    self._encode(store, group)
                    group = {}
        return bad

    def _encode(self, store, media: dict[tuple[str, int], torch.Tensor]) -> None:
        device = next(self.model.parameters()).device
        if not media:
            return
        if store is self._images:
            features = self.model.encode_images(torch.stack(list(media.values())).to(device))
        else:
            mels, lengths = pad_mels(list(media.values()))
            features, lengths = self.model.encode_audio(mels.to(device), lengths.to(device))
            features = features.split(lengths.tolist())
        for key, feature in zip(media, features, strict=True):
            store[key] = feature.to("cpu", torch.float16, copy=True)
            self.bytes += store[key].nbytes
        if self.bytes > self.limit:
            raise UserError("the frozen features need more than feature_cache_gb "
                            f"({self.limit / 2 ** 30:g}): raise it, lower augment_takes, or set "
                            "feature_cache_gb to 0 to encode every batch anew")
