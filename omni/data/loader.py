"""The run's training batches: step -> the micro-batches of its draws, a pure function of the step."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from omni import checkpoint
from omni.data import manifest
from omni.data.audio import MediaError
from omni.data.batch import IGNORE, Batch, Sample
from omni.data.collate import Collator
from omni.config import SFTConfig, UserError, mix_entry, mix_question
from omni.console import say
from omni.distributed import ALONE, World
from omni.data.sampler import Draw, WeightedSampler

PARTS = ("thinker_ckpt", "audio_ckpt", "vision_ckpt")


@dataclass
class Mix:
    """All sources of a data mix: training and held-out samples by name, weights, and what was skipped."""

    train: dict[str, list[Sample]] = field(default_factory=dict)
    val: dict[str, list[Sample]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # "NAME.train", "NAME.val" -> the manifest
    skipped: list[dict] = field(default_factory=list)  # a row a sample: source, split, line or media, reason
    cut: dict[str, int] = field(default_factory=dict)  # source -> samples that lose the front of their prompt

    def drop(self, why) -> None:
        """Take the samples out for which `why(source, sample)` gives a reason."""
        for split, sources in (("train", self.train), ("val", self.val)):
            for name, samples in sources.items():
                reasons = [why(name, sample) for sample in samples]
                self.skipped += [
                    {"source": name, "split": split, "media": [*sample.images, *sample.audios],
                     "question": sample.messages[0][1][:80], "reason": reason}
                    for sample, reason in zip(samples, reasons, strict=True) if reason is not None]
                sources[name] = [s for s, reason in zip(samples, reasons, strict=True) if reason is None]

    def drop_unreadable(self, bad: dict[str, str]) -> None:
        """Take the samples out whose media turned out to be unusable: {path: reason}."""
        if bad:
            self.drop(lambda _, s: next((bad[path] for path in s.images + s.audios if path in bad), None))

    def drop_overlong(self, collate: Collator, frames: dict[str, int]) -> None:
        """Take the samples out that can't be cut to max_length; count those that are cut."""
        def why(name: str, sample: Sample) -> str | None:
            longer, reason = collate.cut(sample, frames)
            if longer and reason is None:
                self.cut[name] = self.cut.get(name, 0) + 1
            return reason
        self.drop(why)

    def reasons(self) -> dict[str, dict[str, int]]:
        """{source: {reason: samples skipped}}."""
        return {name: dict(Counter(row["reason"] for row in self.skipped if row["source"] == name))
                for name in self.train}

    def check(self, max_skipped: float, listed: Path | None) -> None:
        """A UserError if a source lost more than `max_skipped` of its samples, or all of a split.

        What was skipped is written to the file `listed`, a line a sample.
        """
        if listed is not None and (self.skipped or listed.exists()):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.skipped)
            checkpoint.save_text(listed, text)
        for name, reasons in self.reasons().items():
            kept, lost = len(self.train[name]) + len(self.val[name]), sum(reasons.values())
            if not self.train[name] or not self.val[name] or lost > max_skipped * (kept + lost):
                what = "; ".join(f"{count}x {reason}" for reason, count in reasons.items()) or "one is empty"
                first = next((f", the first on line {row['line']} of its {row['split']} manifest"
                              for row in self.skipped if row["source"] == name and "line" in row), "")
                where = f" ({listed} lists them)" if listed is not None and lost else ""
                paths = " and ".join(self.files[key] for key in self.files if key.startswith(f"{name}."))
                raise UserError(f"source {name}, {paths}: {lost} of {kept + lost} samples can't be used: "
                                f"{what}{first}{where}. Mend them or raise max_skipped (now {max_skipped:g})")

    def name(self, draw: Draw) -> str:
        """A training sample as a person finds it again: source, media or else the question."""
        sample = self.train[draw.source][draw.index]
        media = " ".join((*sample.images, *sample.audios))
        return f"{draw.source} {media or repr(sample.messages[0][1][:60])}"


def read_mix(config: SFTConfig) -> Mix:
    """Read every source of the mix whose weight is above 0, with a line said for each."""
    mix = Mix()
    for name in config.data_mix:
        weight, train, val = mix_entry(config, name)
        if weight == 0:
            continue
        paths = {"train": train, "val": val} if isinstance(val, str) else {"train": train}
        sources = {split: manifest.read(path, name, config.allow_outside_paths, mix_question(config, name))
                   for split, path in paths.items()}
        say(f"source {name}: {manifest.told(list(sources.values()))}")
        for split, source in sources.items():
            mix.files[f"{name}.{split}"] = source.path
            mix.skipped += [{"source": name, "split": split, "line": line, "reason": reason}
                            for line, reason in source.skipped]
        if isinstance(val, str):
            mix.train[name], mix.val[name] = sources["train"].samples, sources["val"].samples
        else:
            mix.train[name], mix.val[name] = sources["train"].split(val)
            if mix.val[name] and not mix.train[name]:
                raise UserError(f'{train}: nothing is left to train on when "val" {val:g} of '
                                f"{len(mix.val[name])} samples is held out; lower it or give a file")
        say_shared(name, mix)
        mix.val[name] = mix.val[name][:config.eval_samples]
        mix.weights[name] = weight
    return mix


def say_shared(name: str, mix: Mix) -> None:
    """Say how many held-out samples have a medium that is trained on too."""
    trained = {path for sample in mix.train[name] for path in sample.images + sample.audios}
    shared = sum(not trained.isdisjoint(sample.images + sample.audios) for sample in mix.val[name])
    if shared:
        say(f"source {name}: {shared:,} of {len(mix.val[name]):,} held-out samples share a picture or clip "
            'with training; to measure on media never seen, give "val" a file of its own')


def inputs(config: SFTConfig, mix: Mix) -> dict[str, str]:
    """What a run is made from, by size and hash: a resumed run is told where one changed."""
    found = {key: checkpoint.file_print(getattr(config, key)) for key in PARTS}
    found |= {f"data_mix.{key}": checkpoint.file_print(path) for key, path in mix.files.items()}
    usable = {f"data_mix.{name}.usable": f"{len(samples)} samples" for name, samples in mix.train.items()}
    return found | usable


@dataclass(frozen=True)
class Schedule:
    """How draws make up steps and epochs. An epoch's last step is smaller where the numbers don't divide."""

    samples_per_epoch: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples_per_epoch // self.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def draws(self, step: int) -> range:
        """The numbers of the draws of `step` (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start, end = epoch * self.samples_per_epoch, (epoch + 1) * self.samples_per_epoch
        first = start + place * self.batch_size
        return range(first, min(first + self.batch_size, end))


@dataclass(frozen=True)
class Step:
    """A rank's micro-batches of one global step, and what went into them."""

    batches: list[Batch]
    counts: torch.Tensor  # (sources of the mix, 2) samples and answer tokens of this rank
    draws: list[Draw]  # of the whole step


class StepDataset(Dataset):
    """Item `s` is global step `s`, whoever asks and whenever: workers and resumes can't change the order."""

    def __init__(self, mix: Mix, sampler: WeightedSampler, schedule: Schedule, collate: Collator, takes: int,
                 micro_batches: int, world: World = ALONE):
        self.mix, self.sampler, self.schedule, self.collate = mix, sampler, schedule, collate
        self.takes, self.micro_batches, self.world = takes, micro_batches, world

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> Step | UserError:
        """The step, or why there is none: returned, since an error raised in a worker loses its one line."""
        draws = [self.sampler[k] for k in self.schedule.draws(step)]
        try:
            return self._step(draws)
        except MediaError as err:
            names = ", ".join(map(self.mix.name, draws))
            return UserError(f"a medium that was readable when the run began is so no more ({err}), one of "
                             f"{names}; mend it, then go on with --resume")

    def _step(self, draws: list[Draw]) -> Step:
        largest = -(-len(draws) // self.world.size)  # share of a rank
        size = -(-largest // self.micro_batches)
        mine = self.world.share(draws)
        parts = [mine[i:i + size] for i in range(0, largest, size)]  # as many on each rank
        batches = [self._collate(part) if part else self._idle(draws[0]) for part in parts]
        answers = torch.cat([(b.labels != IGNORE).sum(1) for b in batches]).tolist()
        counts = {name: [0, 0] for name in self.mix.train}
        for draw, tokens in zip(mine, answers, strict=False):  # an idle batch's sample is nobody's
            counts[draw.source][0] += 1
            counts[draw.source][1] += tokens
        return Step(batches, torch.tensor([*counts.values()]), draws)

    def _collate(self, draws: list[Draw]) -> Batch:
        return self.collate([self._sample(d) for d in draws], [d.passes % self.takes for d in draws])

    def _sample(self, draw: Draw) -> Sample:
        return self.mix.train[draw.source][draw.index]

    def _idle(self, draw: Draw) -> Batch:
        """For a rank whose share of a small step is empty: a batch that nothing is learned from."""
        batch = self._collate([draw])
        return replace(batch, labels=torch.full_like(batch.labels, IGNORE))


def loader(dataset: StepDataset, start: int, end: int, workers: int) -> Iterator[Step]:
    """The steps start..end-1 in order, prepared ahead by `workers` processes (0: in this one)."""
    for step in DataLoader(dataset, batch_size=None, sampler=range(start, end), num_workers=workers,
                           prefetch_factor=4 if workers else None, worker_init_fn=_leave_signals):
        if isinstance(step, UserError):
            raise step
        yield step


def _leave_signals(_worker: int) -> None:
    """A signal to the whole group is the run's to answer: a worker heeds only a second SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
