"""The data mix of a run: its sources, the samples that were skipped, and fingerprints of its files."""

import gc
import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from omni.base import checkpoint, hub
from omni.base.config import SFTConfig
from omni.base.config_file import mix_entry, mix_reading
from omni.base.console import say
from omni.base.errors import UserError
from omni.data import manifest
from omni.data.media import file_of
from omni.data.sample import Sample, spread
from omni.data.sampler import Draw

# Of shards above LARGE bytes, which hold media, only the END is hashed: reading all takes minutes.
LARGE, END = 2 ** 28, 2 ** 22
MEDIA, VAL_MEDIA = ".media", ".val.media"  # endings of the names of media fingerprints
PARTS = ("thinker_ckpt", "audio_ckpt", "vision_ckpt", "system_ckpt")


@dataclass
class Mix:
    """The sources of a data mix by name: training and held-out samples, weights, skipped samples."""

    train: dict[str, list[Sample]] = field(default_factory=dict)
    val: dict[str, list[Sample]] = field(default_factory=dict)
    without_val: set[str] = field(default_factory=set)  # sources of which nothing is to be held out
    weights: dict[str, float] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)  # "NAME.train", "NAME.val" -> its files
    skipped: list[dict] = field(default_factory=list)  # per sample: source, split, line or media, reason
    cut: dict[str, int] = field(default_factory=dict)  # source -> number of samples whose prompt is cut
    pieces: dict[str, tuple[int, int]] = field(default_factory=dict)  # source -> (long plain texts, pieces)
    overlong: dict[str, list[int]] = field(default_factory=dict)  # source -> tokens of each longer sample

    def name(self, draw: Draw) -> str:
        """What a user finds a training sample by: its source, and its media or else its question."""
        sample = self.train[draw.source][draw.index]
        media = " ".join((*sample.images, *sample.audios))
        return f"{draw.source} {media or repr(sample.messages[0][1][:60])}"


def read_mix(config: SFTConfig) -> Mix:
    """Read every source of the mix whose weight is above 0, and print a line about each."""
    mix = Mix()
    for name in config.data_mix:
        weight, train, val = mix_entry(config, name)
        if weight == 0:
            continue
        entry = config.data_mix[name]
        alone = isinstance(entry, dict) and "train" in entry and "val" not in entry
        if alone and not Path(val).exists():
            raise UserError(f'source {name}: it has "train" and no "val"; add "val": a file, or the share to '
                            "hold out, such as 0.1")
        own = isinstance(val, str | list)  # the held-out samples have files of their own
        paths = {"train": train, "val": val} if own else {"train": train}
        sources = {split: manifest.read(path, name, config.allow_outside_paths, **mix_reading(config, name))
                   for split, path in paths.items()}
        say(f"source {name}: {manifest.summary_line(list(sources.values()))}")
        for source in sources.values():
            for line in source.lines():
                say(f"source {name}: {line}")
        for split, source in sources.items():
            mix.files[f"{name}.{split}"] = source.files
            mix.skipped += [{"source": name, "split": split, "line": line, "reason": reason}
                            for line, reason in source.skipped]
        if val is None:
            mix.without_val.add(name)
            mix.train[name], mix.val[name] = sources["train"].samples, []
            say(f'source {name}: nothing is held out ("val": null), so it has no figures')
        elif own:
            mix.train[name], mix.val[name] = sources["train"].samples, sources["val"].samples
        else:
            mix.train[name], mix.val[name] = sources["train"].split(val)
            if mix.val[name] and not mix.train[name]:
                raise UserError(f'{sources["train"].path}: no sample is left to train on: "val" {val:g} '
                                f"holds out all {len(mix.val[name])}; lower it or give a file")
        report_shared(name, mix)
        mix.val[name] = spread(mix.val[name], config.eval_samples)
        mix.weights[name] = weight
    gc.freeze()  # the samples stay for the whole run: garbage collection need not look at millions of them
    return mix


def report_shared(name: str, mix: Mix) -> None:
    """Print how many held-out samples share a medium with training, and how many texts are in it as well."""
    trained = {path for sample in mix.train[name] for path in sample.images + sample.audios}
    shared = sum(not trained.isdisjoint(sample.images + sample.audios) for sample in mix.val[name])
    if shared:
        say(f"source {name}: {shared:,} of {len(mix.val[name]):,} held-out samples share an image or clip "
            'with training; for figures on unseen media, give "val" a file of its own')
    texts = [sample.turns for sample in mix.val[name] if not (sample.images or sample.audios)]
    trained = {sample.turns for sample in mix.train[name]} if texts else ()
    known = sum(turns in trained for turns in texts)
    if known:
        say(f"source {name}: {known:,} of {len(texts):,} held-out texts are in training word for word; their "
            "figures say what was memorised")


def _fingerprint(files: list[str]) -> str:
    """The fingerprint of a file, or a hash of the fingerprints of several."""
    found = [_of_end(file) if file.lower().endswith((".parquet", ".tar")) and os.path.getsize(file) > LARGE
             else checkpoint.file_fingerprint(file) for file in files]
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    return found[0] if len(found) == 1 else f"{len(found)} files, sha256 {digest[:16]}"


def _of_end(path: str) -> str:
    """Size and hash of the end of a large file. The end of a Parquet file holds all offsets before it."""
    with open(path, "rb") as f:
        f.seek(-END, os.SEEK_END)
        digest = hashlib.sha256(f.read()).hexdigest()
    return f"{os.path.getsize(path)} bytes, sha256 of the end {digest[:16]}"


def input_fingerprints(config: SFTConfig, mix: Mix) -> dict[str, str]:
    """Size and hash of each part's checkpoint and each manifest, so that a resume notices a change.

    A part from the Hub is known by its commit, media by the names, sizes and times of their files.
    """
    places = {"system_ckpt": config.system_ckpt} if config.system_ckpt else \
        {key: getattr(config, key) for key in PARTS[:3]}
    found = {key: f"commit {hub.commit(place)}" if hub.commit(place) else
             checkpoint.file_fingerprint(hub.locate(place)) for key, place in places.items()}
    found |= {f"data_mix.{key}": _fingerprint(files) for key, files in mix.files.items()}
    usable = {f"data_mix.{name}.usable": f"{len(samples)} samples" for name, samples in mix.train.items()}
    media = {f"data_mix.{name}{ending}": _media_fingerprint(samples)
             for sources, ending in ((mix.train, MEDIA), (mix.val, VAL_MEDIA))
             for name, samples in sources.items()}
    return found | usable | {key: value for key, value in media.items() if value}


def _media_fingerprint(samples: list[Sample]) -> str:
    """Number, size, newest time and a hash of the files that hold the media; "" if there are none."""
    files = {file_of(path) for sample in samples for path in sample.images + sample.audios}
    size, newest, digest = 0, 0, hashlib.blake2b(digest_size=8)
    for path in sorted(files):
        try:
            stat = os.stat(path)
        except OSError:  # it was there a moment ago
            continue
        size, newest = size + stat.st_size, max(newest, int(stat.st_mtime))
        name = os.path.basename(path).encode("utf-8", "surrogateescape")
        digest.update(b"%s/%d/%d/" % (name, stat.st_size, int(stat.st_mtime)))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(newest))
    return f"{len(files)} files, {size} bytes, newest {when}, {digest.hexdigest()}" if files else ""
