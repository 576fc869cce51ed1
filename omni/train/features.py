"""Frozen features: what frozen encoders make of each medium, computed once and kept."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

from omni.console import QUIET
from omni.data import media
from omni.data.collate import pad_mels
from omni.data.decoding import Decoder
from omni.data.sample import Sample
from omni.device import autocast
from omni.distributed import ALONE, World
from omni.errors import MediaError, UserError
from omni.model.omni import OmniNetwork

GROUP = 32  # media encoded together


def unusable_media(samples: Iterable[Sample], decoder: Decoder, what: str,
                   world: World = ALONE) -> dict[str, str]:
    """Read every medium of `samples` once; returns {path: reason} of those that can't be used."""
    requests = [("pixels", p, 0) for p in dict.fromkeys(p for s in samples for p in s.images)]
    requests += [("mel", p, 0) for p in dict.fromkeys(p for s in samples for p in s.audios)]
    requests = world.share(requests)
    bar = tqdm(decoder.read(requests), desc=f"checking {what}", total=len(requests), mininterval=2,
               disable=QUIET or None, leave=False)
    bad = {path: str(medium) for (_, path, _), medium in zip(requests, bar, strict=True)
           if isinstance(medium, MediaError)}
    return share_out(bad, decoder, world)


def share_out(bad: dict[str, str], decoder: Decoder, world: World = ALONE) -> dict[str, str]:
    """What each rank found about its share of the media, made known to all."""
    for failed, frames in world.gather((bad, decoder.frames)):
        bad |= failed
        decoder.frames |= {path: max(n, decoder.frames.get(path, 0)) for path, n in frames.items()}
    return bad


class FeatureStore:
    """Features of pictures and clips by (path, take), in half precision in main memory.

    They are computed in groups of a fixed make-up, so they come out the same to the bit whenever a run is
    resumed. Of several ranks each computes its share and gives it to the others.
    """

    def __init__(self, model: OmniNetwork, decoder: Decoder, limit_gb: float, precision: str = "fp32",
                 world: World = ALONE):
        self.model, self.decoder, self.limit = model, decoder, limit_gb * 2 ** 30
        self.world, self.precision = world, precision
        self._images: dict[tuple[str, int], torch.Tensor] = {}
        self._audios: dict[tuple[str, int], torch.Tensor] = {}
        self.bytes = 0

    def image(self, path: str, take: int) -> torch.Tensor:
        """(P, vision width) in half precision."""
        return self._images[path, take]

    def audio(self, path: str, take: int) -> torch.Tensor:
        """(S, audio width) in half precision."""
        return self._audios[path, take]

    @torch.no_grad()  # under inference_mode autocast would cast each weight again at each use
    def add(self, samples: Iterable[Sample], takes: int, what: str) -> dict[str, str]:
        """Read and encode the media of `samples` in `takes` versions; returns {path: reason} of the bad."""
        bad: dict[str, str] = {}
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads - 1))  # the decoder has the other core
        for store, method, paths in (
                (self._images, "pixels", dict.fromkeys(p for s in samples for p in s.images)),
                (self._audios, "mel", dict.fromkeys(p for s in samples for p in s.audios))):
            if method == "mel":  # clips of like length are encoded together: less padding
                paths = sorted(paths, key=media.size)
            todo = [(method, p, t) for p in paths for t in range(takes) if (p, t) not in store]
            groups = self.world.share([todo[i:i + GROUP] for i in range(0, len(todo), GROUP)])
            todo = [request for group in groups for request in group]
            bar = tqdm(self.decoder.read(todo), desc=f"features of {what}", total=len(todo), unit="media",
                       mininterval=2, disable=QUIET or None, leave=False)
            group: dict[tuple[str, int], torch.Tensor] = {}
            for number, ((_, path, take), medium) in enumerate(zip(todo, bar, strict=True), 1):
                if isinstance(medium, MediaError):
                    bad[path] = str(medium)
                else:
                    group[path, take] = medium
                if number % GROUP == 0 or number == len(todo):
                    self._encode(store, group)
                    group = {}
            if self.world.size > 1:
                mine = {(path, take): store[path, take] for _, path, take in todo if (path, take) in store}
                for theirs in self.world.gather(mine):
                    store |= theirs
            self.bytes = sum(f.nbytes for kept in (self._images, self._audios) for f in kept.values())
            self._check()
        torch.set_num_threads(threads)
        return share_out(bad, self.decoder, self.world)

    def _encode(self, store, group: dict[tuple[str, int], torch.Tensor]) -> None:
        device = next(self.model.parameters()).device
        if not group:
            return
        with autocast(device, self.precision):
            if store is self._images:
                features = self.model.encode_images(torch.stack(list(group.values())).to(device))
            else:
                mels, lengths = pad_mels(list(group.values()))
                features, lengths = self.model.encode_audio(mels.to(device), lengths.to(device))
                features = [row[:length] for row, length in zip(features, lengths.tolist(), strict=True)]
        for key, feature in zip(group, features, strict=True):
            store[key] = feature.to("cpu", torch.float16, copy=True)
            self.bytes += store[key].nbytes
        self._check()

    def _check(self) -> None:
        if self.bytes > self.limit:
            raise UserError("the frozen features need more than feature_cache_gb "
                            f"({self.limit / 2 ** 30:g}): raise it, lower augment_takes, or set "
                            "feature_cache_gb to 0 to encode every batch anew")
