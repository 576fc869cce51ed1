"""Before training: finds the media that can't be used, and the frozen encoders' features of the others."""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import nn

from omni.base import checkpoint
from omni.base.config import SFTConfig
from omni.base.console import progress, say
from omni.base.device import autocast, computes_in_bf16
from omni.base.distributed import ALONE, World
from omni.base.errors import MediaError
from omni.data import media, skipped
from omni.data.collate import pad_mels
from omni.data.decoding import Decoder, Request
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.model.omni import OmniNetwork
from omni.train.feature_cache import FeatureCache, Key, default_folder

GROUP = 32  # media that are encoded together
WINDOW = 64  # groups after which the features so far are written, and their size is compared with the limit
PREPROCESSING = "1"  # to be raised when the reader, or an encoder's code, gives other numbers
ENCODER_OF = {"pixels": "vision", "mel": "audio"}  # the reader's methods
Medium = tuple[str, int]  # path and take


def read_media(mix: Mix, features: "FeatureStore | None", decoder: Decoder, takes: int, world: World,
               splits: Collection[str]) -> None:
    """Read the media of a mix, and keep their frozen features; drop the samples whose media can't be used.

    Training media are read in `takes` versions. `splits` are those that are read: "train", "val".
    """
    for name in mix.train:
        for split, samples, count in (("train", mix.train[name], takes), ("val", mix.val[name], 1)):
            if split in splits:
                what = f"{name}, {'training' if split == 'train' else 'held out'}"
                bad = unusable_media(samples, count, decoder, what, world) if features is None \
                    else features.add(samples, count, what)
                skipped.drop_unreadable(mix, bad)


def unusable_media(samples: Iterable[Sample], takes: int, decoder: Decoder, what: str,
                   world: World = ALONE) -> dict[str, str]:
    """Read every medium of `samples` once; returns {path: reason} of those that can't be used.

    `takes` is the number of augmented versions that training draws from (1: only the plain one). The longest
    of them is recorded in `decoder.frames`, since a faster or slower take of a clip has another length.
    """
    requests = [("pixels", p, 0) for p in dict.fromkeys(p for s in samples for p in s.images)]
    requests += [("mel", p, 0) for p in dict.fromkeys(p for s in samples for p in s.audios)]
    return _check(requests, takes, decoder, what, world)


def _check(requests: list[Request], takes: int, decoder: Decoder, what: str, world: World) -> dict[str, str]:
    requests = world.share(requests)
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


def encoder_name(encoder: nn.Module, bf16: bool) -> str:
    """Names what an encoder's features depend on besides the medium: weights, shape, precision, our code."""
    shape = f"{type(encoder.arch).__name__} {json.dumps(dataclasses.asdict(encoder.arch), sort_keys=True)}"
    weights = checkpoint.fingerprint(encoder.state_dict(), torch.float32)
    key = Key.of(weights.encode(), shape.encode(), b"bf16" if bf16 else b"fp32", PREPROCESSING.encode())
    return f"{key.high:016x}"


class FeatureStore:
    """The frozen encoders' features of images and clips by (path, take), in fp16, kept on the disk.

    Media of encoders that are trained are only read, to find those that can't be used. Media are encoded in
    groups whose members never change, so a resumed run gets the same bits. Each rank of a machine encodes its
    share. Features beyond `limit_gb` are not kept: batches hold these media, and each step encodes them.
    """

    def __init__(self, model: OmniNetwork, decoder: Decoder, limit_gb: float, precision: str = "fp32",
                 world: World = ALONE, folder: str | None = None):
        self.model, self.decoder, self.limit = model, decoder, limit_gb * 2 ** 30
        self.world, self.precision = world, precision
        self.encoders = model.frozen & {"vision", "audio"}
        self.device = next(model.parameters()).device
        root = Path(folder).expanduser() if folder else default_folder()
        bf16 = computes_in_bf16(self.device, precision)
        names = {name: encoder_name(encoder, bf16) for name, encoder in (
            ("vision", model.vision_encoder), ("audio", model.audio_encoder)) if name in self.encoders}
        self.caches = {kind: FeatureCache(root, name, self.limit) for kind, name in names.items()}
        self.bytes = 0  # of the features that this run uses
        self._keys: dict[Medium, Key] = {}  # of these features
        self._digests: dict[str, bytes] = {}  # path -> hash of the medium's bytes
        self._full = False

    @classmethod
    def of_run(cls, config: SFTConfig, model: OmniNetwork, decoder: Decoder,
               world: World) -> "FeatureStore | None":
        """That of a run; None if both encoders are trained, or `feature_cache_gb` is 0."""
        if not model.frozen & {"vision", "audio"} or not config.feature_cache_gb:
            return None
        return cls(model, decoder, config.feature_cache_gb, config.precision, world, config.feature_cache_dir)

    def __getstate__(self) -> dict:
        """For worker processes, which only look features up."""
        return self.__dict__ | {"model": None, "decoder": None, "world": ALONE}

    def holds(self, media: Iterable[Medium]) -> bool:
        """Whether the features of all these media are kept."""
        return all(medium in self._keys for medium in media)

    def image(self, path: str, take: int) -> torch.Tensor:
        """(P, vision width) in fp16. KeyError unless it is kept."""
        return self.caches["vision"].read(self._keys[path, take])

    def audio(self, path: str, take: int) -> torch.Tensor:
        """(S, audio width) in fp16. KeyError unless it is kept."""
        return self.caches["audio"].read(self._keys[path, take])

    @torch.no_grad()  # in inference_mode, autocast would cast each weight again at each use
    def add(self, samples: Sequence[Sample], takes: int, what: str) -> dict[str, str]:
        """Encode what is not kept yet of the media of `samples`, each in `takes` versions.

        Returns {path: reason} of those that can't be used.
        """
        bad: dict[str, str] = {}
        with one_thread_less():
            for method, paths in (("pixels", dict.fromkeys(p for s in samples for p in s.images)),
                                  ("mel", dict.fromkeys(p for s in samples for p in s.audios))):
                only_checked = list(paths)
                if ENCODER_OF[method] in self.encoders:
                    if method == "mel":  # clips of similar length are encoded together: less padding
                        paths = sorted(paths, key=media.size)
                    wanted = [(p, t) for p in paths for t in range(takes) if (p, t) not in self._keys]
                    found, only_checked = self._encode_all(method, wanted, what)
                    bad |= found
                bad |= _check([(method, path, 0) for path in only_checked], takes, self.decoder, what,
                              self.world)
        return _exchange(bad, self.decoder, self.world)

    def _encode_all(self, method: str, wanted: list[Medium], what: str) -> tuple[dict[str, str], list[str]]:
        """Keep the features of `wanted`.

        Returns {path: reason} of media that can't be used, and the paths that are beyond the limit.
        """
        cache, bad = self.caches[ENCODER_OF[method]], {}
        groups = [wanted[i:i + GROUP] for i in range(0, len(wanted), GROUP)]
        if method == "pixels":
            self._warn_if_full(len(wanted) * self._image_bytes(), what)
        for start in range(0, len(groups), WINDOW):
            if self._full:
                rest = [path for group in groups[start:] for path, _ in group]
                return bad, [path for path in dict.fromkeys(rest) if path not in bad]
            window, before = groups[start:start + WINDOW], self.bytes
            keys = {medium: self._key(*medium) for group in window for medium in group}
            missing = [group for group in window
                       if not all(keys[medium] and cache.intact(keys[medium]) for medium in group)]
            bad |= self._encode_groups(method, self.world.share_of_node(missing), keys, what)
            bad = _exchange(bad, self.decoder, self.world)  # after it, all ranks have written theirs
            cache.refresh()
            for (path, take), key in keys.items():
                if path not in bad and key and cache.find(key) is not None:
                    size, frames = cache.size(key)
                    self._keys[path, take] = key
                    self.bytes += size
                    if method == "mel":
                        self.decoder.frames[path] = max(frames, self.decoder.frames.get(path, 0))
            if start == 0 and method == "mel":
                self._warn_if_full((self.bytes - before) / len(window) * len(groups), what)
            self._full = self.bytes > self.limit
        return bad, []

    def _encode_groups(self, method: str, groups: list[list[Medium]], keys: dict[Medium, Key | None],
                       what: str) -> dict[str, str]:
        """Decode, encode and keep `groups`; returns {path: reason} of media that can't be used."""
        cache, bad = self.caches[ENCODER_OF[method]], {}
        requests = [(method, *medium) for group in groups for medium in group]
        answers = iter(progress(self.decoder.read(requests), desc=f"features of {what}", total=len(requests),
                                unit="media"))
        for group in groups:
            decoded = {medium: next(answers) for medium in group}
            bad |= {path: str(got) for (path, _), got in decoded.items() if isinstance(got, MediaError)}
            decoded = {medium: got for medium, got in decoded.items() if not isinstance(got, MediaError)}
            for medium, feature in self._encode(method, decoded).items():
                if keys[medium]:  # else the file vanished between two reads of it
                    cache.add(keys[medium], feature, len(decoded[medium]) if method == "mel" else 0)
        for _ in answers:  # lets the decoder end
            pass
        cache.flush()
        return bad

    def _encode(self, method: str, group: dict[Medium, torch.Tensor]) -> dict[Medium, torch.Tensor]:
        """The features of a group of decoded media."""
        if not group:
            return {}
        with autocast(self.device, self.precision):
            if method == "pixels":
                features = self.model.encode_images(torch.stack(list(group.values())).to(self.device))
                features = features.to("cpu", torch.float16)  # at once: each copy waits for a GPU
            else:
                mels, lengths = pad_mels(list(group.values()))
                features, lengths = self.model.encode_audio(mels.to(self.device), lengths.to(self.device))
                features = features.to("cpu", torch.float16)
                features = [row[:length] for row, length in zip(features, lengths.tolist(), strict=True)]
        return dict(zip(group, features, strict=True))

    def _image_bytes(self) -> int:
        encoder = self.model.vision_encoder
        return 2 * encoder.grid ** 2 * encoder.arch.width

    def _warn_if_full(self, more: float, what: str) -> None:
        if self.bytes + more > self.limit and not self._full:
            say(f"features of {what}: about {more / 2 ** 30:.1f} GB, which exceeds feature_cache_gb "
                f"({self.limit / 2 ** 30:g}) together with the others; the media beyond it are encoded in "
                "each step, which is slower")

    def _key(self, path: str, take: int) -> Key | None:
        """A hash of the medium's bytes and, for an augmented take, of all that its augmentation depends on.

        None if the file can't be read.
        """
        if path not in self._digests:
            try:
                self._digests[path] = media.digest(path)
            except MediaError:
                return None
        seed = f"{self.decoder.reader.seed} {take} {crc32(media.name(path))}" if take else ""
        return Key.of(self._digests[path], seed.encode())
