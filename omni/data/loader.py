"""Training batches: step -> its micro-batches, a pure function of the step number."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from omni.base import machine
from omni.base.distributed import ALONE, World
from omni.base.errors import MediaError, UserError
from omni.data.batch import IGNORE, Batch
from omni.data.collate import Collator
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.data.sampler import Draw, WeightedSampler


@dataclass(frozen=True)
class Schedule:
    """How draws are grouped into steps and epochs. The last step of an epoch may be smaller."""

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
    """One rank's micro-batches of a global step."""

    batches: list[Batch]
    counts: torch.Tensor  # (sources of the mix, 2): samples and answer tokens of this rank
    draws: list[Draw]  # those of all ranks


class StepDataset(Dataset):
    """Item `s` is global step `s` in every process, so workers and resumed runs keep the order."""

    def __init__(self, mix: Mix, sampler: WeightedSampler, schedule: Schedule, collate: Collator, takes: int,
                 micro_batches: int, world: World = ALONE):
        self.mix, self.sampler, self.schedule, self.collate = mix, sampler, schedule, collate
        self.takes, self.micro_batches, self.world = takes, micro_batches, world

    def __len__(self) -> int:
        return self.schedule.steps

    def steps(self, start: int, end: int, workers: int | str) -> Iterator[Step]:
        """Steps start..end-1 in order, prepared ahead by `workers` processes (0, "auto": in this process)."""
        workers = 0 if workers == "auto" else workers
        for step in DataLoader(self, batch_size=None, sampler=range(start, end), num_workers=workers,
                               prefetch_factor=4 if workers else None, worker_init_fn=_ignore_first_signal,
                               multiprocessing_context=machine.children() if workers else None):
            if isinstance(step, UserError):
                raise step
            yield step

    def all_skipped(self) -> list[dict]:
        """The samples that were skipped so far, on all ranks."""
        return self.mix.skipped

    def __getitem__(self, step: int) -> Step | UserError:
        """The step, or an error. It is returned, because one raised in a worker loses its message."""
        draws = [self.sampler[k] for k in self.schedule.draws(step)]
        try:
            return self._step(draws)
        except MediaError as err:
            names = ", ".join(map(self.mix.name, draws))
            return UserError(f"a media file that was readable when the run began no longer is ({err}); it "
                             f"is one of {names}. Repair it, then continue with --resume --allow-change "
                             "data_mix, since the file is a new one")

    def _step(self, draws: list[Draw]) -> Step:
        largest = -(-len(draws) // self.world.size)  # samples of the rank that has the most
        size = -(-largest // self.micro_batches)
        mine = self.world.share(draws)
        parts = [mine[i:i + size] for i in range(0, largest, size)]  # the same number on each rank
        batches = [self._collate(part) if part else self._idle(draws[0]) for part in parts]
        answers = [count for batch in batches for count in batch.answer_counts]
        counts = {name: [0, 0] for name in self.mix.train}
        for draw, tokens in zip(mine, answers, strict=False):  # an idle batch has no draw
            counts[draw.source][0] += 1
            counts[draw.source][1] += tokens
        return Step(batches, torch.tensor([*counts.values()]), draws)

    def _collate(self, draws: list[Draw]) -> Batch:
        return self.collate([self._sample(d) for d in draws], [d.passes % self.takes for d in draws])

    def _sample(self, draw: Draw) -> Sample:
        return self.mix.train[draw.source][draw.index]

    def _idle(self, draw: Draw) -> Batch:
        """A batch without labels, for a rank that has no sample in a small step."""
        batch = self._collate([draw])
        return replace(batch, labels=torch.full_like(batch.labels, IGNORE), answer_counts=(0,))


def _ignore_first_signal(_worker: int) -> None:
    """Ctrl-C reaches the workers too, but the run must finish its step: only a second SIGTERM ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
