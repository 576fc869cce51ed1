"""The data mix of a run: its sources, the samples that were skipped, and fingerprints of its files."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from omni import checkpoint
from omni.config import SFTConfig
from omni.config_file import mix_entry, mix_question
from omni.console import say
from omni.data import manifest
from omni.data.collate import Collator
from omni.data.sample import Sample
from omni.data.sampler import Draw
from omni.errors import UserError

PARTS = ("thinker_ckpt", "audio_ckpt", "vision_ckpt")


@dataclass
class Mix:
    """The sources of a data mix by name: training and held-out samples, weights, skipped samples."""

    train: dict[str, list[Sample]] = field(default_factory=dict)
    val: dict[str, list[Sample]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # "NAME.train", "NAME.val" -> the manifest
    skipped: list[dict] = field(default_factory=list)  # per sample: source, split, line or media, reason
    cut: dict[str, int] = field(default_factory=dict)  # source -> number of samples whose prompt is cut

    def drop(self, why: Callable[[str, Sample], str | None]) -> None:
        """Drop the samples for which `why(source, sample)` returns a reason, and add them to `skipped`."""
        for split, sources in (("train", self.train), ("val", self.val)):
            for name, samples in sources.items():
                reasons = [why(name, sample) for sample in samples]
                self.skipped += [
                    {"source": name, "split": split, "media": [*sample.images, *sample.audios],
                     "question": sample.messages[0][1][:80], "reason": reason}
                    for sample, reason in zip(samples, reasons, strict=True) if reason is not None]
                sources[name] = [s for s, reason in zip(samples, reasons, strict=True) if reason is None]

    def drop_unreadable(self, bad: dict[str, str]) -> None:
        """Drop the samples with a medium in `bad`, which is {path: reason}."""
        if bad:
            self.drop(lambda _, s: next((bad[path] for path in s.images + s.audios if path in bad), None))

    def drop_overlong(self, collate: Collator, frames: dict[str, int]) -> None:
        """Drop the samples that can't be cut to max_length; count those that are cut.

        `frames` is {path: mel frames of its longest take} of all clips.
        """
        def why(name: str, sample: Sample) -> str | None:
            longer, reason = collate.overlong(sample, frames)
            if longer and reason is None:
                self.cut[name] = self.cut.get(name, 0) + 1
            return reason
        self.drop(why)

    def reasons(self) -> dict[str, dict[str, int]]:
        """{source: {reason: number of skipped samples}}."""
        return {name: dict(Counter(row["reason"] for row in self.skipped if row["source"] == name))
                for name in self.train}

    def check(self, max_skipped: float, listed: Path | None) -> None:
        """A UserError if a source lost more than `max_skipped` of its samples, or all of a split.

        `listed` is the file that lists the skipped samples, for the message; None if there is no such file.
        """
        for name, reasons in self.reasons().items():
            kept, lost = len(self.train[name]) + len(self.val[name]), sum(reasons.values())
            if not self.train[name] or not self.val[name] or lost > max_skipped * (kept + lost):
                what = "; ".join(f"{count}x {reason}" for reason, count in reasons.items())
                what = what or "one of them is empty"
                first = next((f", the first on line {row['line']} of its {row['split']} manifest"
                              for row in self.skipped if row["source"] == name and "line" in row), "")
                where = f" ({listed} lists them)" if listed is not None and lost else ""
                paths = " and ".join(self.files[key] for key in self.files if key.startswith(f"{name}."))
                raise UserError(f"source {name}, {paths}: {lost} of {kept + lost} samples can't be used: "
                                f"{what}{first}{where}. Fix them or raise max_skipped (now {max_skipped:g})")

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
        paths = {"train": train, "val": val} if isinstance(val, str) else {"train": train}
        sources = {split: manifest.read(path, name, config.allow_outside_paths, mix_question(config, name))
                   for split, path in paths.items()}
        say(f"source {name}: {manifest.summary_line(list(sources.values()))}")
        for split, source in sources.items():
            mix.files[f"{name}.{split}"] = source.path
            mix.skipped += [{"source": name, "split": split, "line": line, "reason": reason}
                            for line, reason in source.skipped]
        if isinstance(val, str):
            mix.train[name], mix.val[name] = sources["train"].samples, sources["val"].samples
        else:
            mix.train[name], mix.val[name] = sources["train"].split(val)
            if mix.val[name] and not mix.train[name]:
                raise UserError(f'{train}: no sample is left to train on: "val" {val:g} holds out all '
                                f"{len(mix.val[name])}; lower it or give a file")
        report_shared_media(name, mix)
        mix.val[name] = mix.val[name][:config.eval_samples]
        mix.weights[name] = weight
    return mix


def report_shared_media(name: str, mix: Mix) -> None:
    """Print how many held-out samples of a source share a medium with training, if any do."""
    trained = {path for sample in mix.train[name] for path in sample.images + sample.audios}
    shared = sum(not trained.isdisjoint(sample.images + sample.audios) for sample in mix.val[name])
    if shared:
        say(f"source {name}: {shared:,} of {len(mix.val[name]):,} held-out samples share an image or clip "
            'with training; for figures on unseen media, give "val" a file of its own')


def input_fingerprints(config: SFTConfig, mix: Mix) -> dict[str, str]:
    """Size and hash of each part's checkpoint and each manifest, so that a resume notices a change."""
    found = {key: checkpoint.file_fingerprint(getattr(config, key)) for key in PARTS}
    found |= {f"data_mix.{key}": checkpoint.file_fingerprint(path) for key, path in mix.files.items()}
    usable = {f"data_mix.{name}.usable": f"{len(samples)} samples" for name, samples in mix.train.items()}
    return found | usable
