"""Reads every medium once before training, to find unusable ones and to cache the frozen encoders' features.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator

import torch

from omni.console import progress
from omni.data import media
from omni.data.collate import pad_mels
from omni.data.decoding import Decoder
from omni.data.sample import Sample
from omni.device import autocast
from omni.distributed import ALONE, World
from omni.errors import MediaError, UserError
from omni.model.omni import OmniNetwork

GROUP = 32  # media that are encoded together


def unusable_media(samples: Iterable[Sample], takes: int, decoder: Decoder, what: str, world: World = ALONE,
                   methods: Collection[str] = ("pixels", "mel")) -> dict[str, str]:
    """Read every medium of `samples` once; returns {path: reason} of those that can't be used.

    `methods` are those of the reader: "pixels" for images, "mel" for clips. `takes` is the number of
    augmented versions that training draws from (1: only the plain one). The longest of them is recorded in
    `decoder.frames`, since a faster or slower take of a clip has another length.
    """
    requests = [("pixels", p, 0) for p in dict.fromkeys(p for s in samples for p in s.images)]
    requests += [("mel", p, 0) for p in dict.fromkeys(p for s in samples for p in s.audios)]
    requests = world.share([request for request in requests if request[0] in methods])
    bad: dict[str, str] = {}
    bar = progress(decoder.read(requests), desc=f"checking {what}", total=len(requests))
    for (method, path, _), medium in zip(requests, bar, strict=True):
        if isinstance(medium, MediaError):
            bad[path] = str(medium)
        elif method == "mel":
            longest = max(decoder.reader.frames(path, take, len(medium)) for take in range(takes))
            decoder.frames[path] = max(longest, decoder.frames[path])
    return _exchange(bad, decoder, world)


def _exchange(bad: dict[str, str], decoder: Decoder, world: World) -> dict[str, str]:
    """Share the unusable media and the clips' lengths that each rank found with all other ranks."""
    for failed, frames in world.gather((bad, decoder.frames)):
        bad |= failed
        decoder.frames |= {path: max(n, decoder.frames.get(path, 0)) for path, n in frames.items()}
    return bad


@contextlib.contextmanager
def one_thread_less() -> Iterator[None]:
    """Let PyTorch use one thread less, which leaves a core for the decoder process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class FeatureStore:
    """The frozen encoders' features of images and clips by (path, take), in fp16 in main memory.

    Media of encoders that are trained are only read, to find those that can't be used. Media are encoded in
    groups whose members never change, so a resumed run gets the same bits. Each rank encodes its share and
    sends it to the others.
    """

    def __init__(self, model: OmniNetwork, decoder: Decoder, limit_gb: float, precision: str = "fp32",
                 world: World = ALONE):
        self.model, self.decoder, self.limit = model, decoder, limit_gb * 2 ** 30
        self.world, self.precision = world, precision
        self.encoders = model.frozen & {"vision", "audio"}
        self._images: dict[tuple[str, int], torch.Tensor] = {}
        self._audios: dict[tuple[str, int], torch.Tensor] = {}
        self.bytes = 0

    def image(self, path: str, take: int) -> torch.Tensor:
        """(P, vision width) in fp16."""
        return self._images[path, take]

    def audio(self, path: str, take: int) -> torch.Tensor:
        """(S, audio width) in fp16."""
        return self._audios[path, take]

    @torch.no_grad()  # in inference_mode, autocast would cast each weight again at each use
    def add(self, samples: Iterable[Sample], takes: int, what: str) -> dict[str, str]:
        """Read and encode the media of `samples`, each in `takes` versions; returns {path: reason} of those
        that can't be used. UserError if the features don't fit into `limit_gb`.
        """
        methods = [method for method, encoder in (("pixels", "vision"), ("mel", "audio"))
                   if encoder not in self.encoders]
        bad = unusable_media(samples, takes, self.decoder, what, self.world, methods) if methods else {}
        with one_thread_less():
            for store, method, paths in (
                    (self._images, "pixels", dict.fromkeys(p for s in samples for p in s.images)),
                    (self._audios, "mel", dict.fromkeys(p for s in samples for p in s.audios))):
                if method in methods:
                    continue
                if method == "mel":  # clips of similar length are encoded together: less padding
                    paths = sorted(paths, key=media.size)
                wanted = [(method, p, t) for p in paths for t in range(takes) if (p, t) not in store]
                groups = self.world.share([wanted[i:i + GROUP] for i in range(0, len(wanted), GROUP)])
                bad |= self._add_groups(store, groups, what)
        return _exchange(bad, self.decoder, self.world)

    def _add_groups(self, store: dict, groups: list[list[tuple[str, str, int]]], what: str) -> dict[str, str]:
        """Encode this rank's `groups` into `store` and exchange them; returns {path: reason} if unusable."""
        bad: dict[str, str] = {}
        requests = [request for group in groups for request in group]
        bar = progress(self.decoder.read(requests), desc=f"features of {what}", total=len(requests),
                       unit="media")
        group: dict[tuple[str, int], torch.Tensor] = {}
        for number, ((_, path, take), medium) in enumerate(zip(requests, bar, strict=True), 1):
            if isinstance(medium, MediaError):
                bad[path] = str(medium)
            else:
                group[path, take] = medium
            if number % GROUP == 0 or number == len(requests):
                self._encode(store, group)
                group = {}
        if self.world.size > 1:
            mine = {(path, take): store[path, take] for _, path, take in requests if (path, take) in store}
            for theirs in self.world.gather(mine):
                store |= theirs
        self.bytes = sum(f.nbytes for kept in (self._images, self._audios) for f in kept.values())
        self._check()
        return bad

    def _encode(self, store: dict, group: dict[tuple[str, int], torch.Tensor]) -> None:
        """Encode a group of decoded media into `store`."""
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
                            "feature_cache_gb to 0 to encode the media of every batch")
