"""The run's training batches: step -> the micro-batches of its draws, a pure function of the step."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from omni import manifest
from omni.batch import Batch, Sample
from omni.collate import Collator
from omni.config import SFTConfig, UserError, mix_entry, mix_question
from omni.log import say
from omni.sampler import WeightedSampler


@dataclass
class Mix:
    """All sources of a data mix: training and held-out samples by name, weights, and what was skipped."""

    train: dict[str, list[Sample]]
    val: dict[str, list[Sample]]
    weights: dict[str, float]
    skipped: dict[str, dict[str, int]]  # source -> reason -> samples

    def drop(self, bad: dict[str, str]) -> None:
        """Take the samples out whose media turned out to be unusable: {path: reason}."""
        for split in (self.train, self.val):
            for name, samples in split.items():
                reasons = [next((bad[p] for p in s.images + s.audios if p in bad), None) for s in samples]
                for reason in filter(None, reasons):
                    self.skipped[name][reason] = self.skipped[name].get(reason, 0) + 1
                split[name] = [s for s, reason in zip(samples, reasons, strict=True) if reason is None]

    def check(self, max_skipped: float) -> None:
        """A UserError if a source lost more than `max_skipped` of its samples, or all of a split."""
        for name, reasons in self.skipped.items():
            kept, lost = len(self.train[name]) + len(self.val[name]), sum(reasons.values())
            if not self.train[name] or not self.val[name] or lost > max_skipped * (kept + lost):
                what = "; ".join(f"{count}x {reason}" for reason, count in reasons.items())
                raise UserError(f"source {name}: {lost} of {kept + lost} samples can't be used: {what}. "
                                f"Mend them or raise max_skipped (now {max_skipped:g})")


def read_mix(config: SFTConfig) -> Mix:
    """Read every source of the mix whose weight is above 0, with a line said for each."""
    mix = Mix({}, {}, {}, {})
    for name in config.data_mix:
        weight, train, val = mix_entry(config, name)
        if weight == 0:
            continue
        sources = [manifest.read(path, name, config.allow_outside_paths, mix_question(config, name))
                   for path in ((train, val) if isinstance(val, str) else (train,))]
        say(f"source {name}: {manifest.told(sources)}")
        for source in sources:
            source.check(config.max_skipped)
        if isinstance(val, str):
            mix.train[name], mix.val[name] = (s.samples for s in sources)
        else:
            mix.train[name], mix.val[name] = sources[0].split(val)
            if not mix.train[name]:
                raise UserError(f'{train}: nothing is left to train on when "val" {val:g} of '
                                f"{len(sources[0].samples)} samples is held out; lower it or give a file")
        say_shared(name, mix)
        mix.val[name] = mix.val[name][:config.eval_samples]
        mix.weights[name] = weight
        mix.skipped[name] = dict(sum((s.reasons() for s in sources), Counter()))
    return mix


def say_shared(name: str, mix: Mix) -> None:
    """Say how many held-out samples have a medium that is trained on too."""
    trained = {path for sample in mix.train[name] for path in sample.images + sample.audios}
    shared = sum(not trained.isdisjoint(sample.images + sample.audios) for sample in mix.val[name])
    if shared:
        say(f"source {name}: {shared:,} of {len(mix.val[name]):,} held-out samples share a picture or clip "
            'with training; to measure on media never seen, give "val" a file of its own')


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
    """The micro-batches of one global step, and what went into it."""

    batches: list[Batch]
    sources: dict[str, tuple[int, int]]  # source -> (samples, answer tokens)
    samples: int


class StepDataset(Dataset):
    """Item `s` is global step `s`, whoever asks and whenever: workers and resumes can't change the order."""

    def __init__(self, mix: Mix, sampler: WeightedSampler, schedule: Schedule, collate: Collator, takes: int,
                 micro_batches: int):
        self.mix, self.sampler, self.schedule, self.collate = mix, sampler, schedule, collate
        self.takes, self.micro_batches = takes, micro_batches

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> Step:
        draws = [self.sampler[k] for k in self.schedule.draws(step)]
        samples = [self.mix.train[d.source][d.index] for d in draws]
        takes = [d.passes % self.takes for d in draws]
        size = -(-len(draws) // self.micro_batches)
        batches = [self.collate(samples[i:i + size], takes[i:i + size]) for i in range(0, len(draws), size)]
        answers = torch.cat([(b.labels >= 0).sum(1) for b in batches]).tolist()
        sources: dict[str, tuple[int, int]] = {}
        for draw, tokens in zip(draws, answers, strict=True):
            count, total = sources.get(draw.source, (0, 0))
            sources[draw.source] = (count + 1, total + tokens)
        return Step(batches, sources, len(draws))


def loader(dataset: StepDataset, start: int, end: int, workers: int) -> DataLoader:
    """The steps start..end-1 in order, prepared ahead by `workers` processes (0: in this one)."""
    return DataLoader(dataset, batch_size=None, sampler=range(start, end), num_workers=workers,
                      prefetch_factor=4 if workers else None)
