"""The run's training batches: step -> the micro-batches of its draws, a pure function of the step."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from omni.data.batch import IGNORE, Batch
from omni.data.collate import Collator
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.data.sampler import Draw, WeightedSampler
from omni.distributed import ALONE, World
from omni.errors import MediaError, UserError


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
        answers = [count for batch in batches for count in batch.answer_counts]
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
        return replace(batch, labels=torch.full_like(batch.labels, IGNORE), answer_counts=(0,))


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
