"""The steps that were taken: what each came to is read from the device, counted and reported."""

import torch
from tqdm import tqdm

from omni.base.device import gpu_memory_gb, peak_memory_gb
from omni.data.loader import Step
from omni.data.sampler import Draw
from omni.train.interrupts import skip_bad_step
from omni.train.metrics import Throughput, show_step
from omni.train.run import Run
from omni.train.state import TrainState


class TakenSteps:
    """Steps of an epoch (from 0) whose figures may still be on the device. Reading them waits for it.

    A GPU runs behind the loop that feeds it, so figures are read only where they are needed: to be shown, and
    before anything is saved.
    """

    def __init__(self, run: Run, state: TrainState, epoch: int):
        self.run, self.state, self.epoch, self.throughput = run, state, epoch, Throughput()
        self._unread: list[tuple[list[Draw], torch.Tensor, torch.Tensor]] = []
        self._last = 0.0, 0.0, False  # loss per answer token, gradient norm, whether it was applied

    def add(self, step: Step, counts: torch.Tensor, figures: torch.Tensor) -> None:
        """`counts` (sources, 2) are of all ranks; `figures` (3,) are what `optim.Update` returned."""
        self._unread.append((step.draws, counts, figures))  # not the batches, which are on the device
        self.throughput.add(len(step.draws), int(counts[:, 1].sum()))

    def read(self) -> None:
        """Count the steps. UserError if too many in a row were not applied."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        mix, rows = self.run.dataset.mix, torch.stack([figures for *_, figures in unread]).tolist()
        for (draws, counts, _), (loss, norm, applied) in zip(unread, rows, strict=True):
            if applied:
                self.state.add_step(loss, dict(zip(mix.train, counts.tolist(), strict=True)))
            else:
                names = [mix.name(draw) for draw in draws]
                skip_bad_step(self.state, names, self.epoch, self.run.config.max_bad_steps, self.run.metrics,
                              lambda: self.run.save_step(self.state))
            self._last = loss / max(1, int(counts[:, 1].sum())), norm, bool(applied)

    def show(self, bar: tqdm, lr_factor: float) -> None:
        """Record the last step, and show it; a step that was not applied has been reported otherwise."""
        self.read()
        (loss, norm, applied), config = self._last, self.run.config
        if applied:
            row = {"step": self.state.step, "epoch": self.epoch + 1, "loss": loss,
                   "lr": config.learning_rate * lr_factor, "grad_norm": norm, **self.throughput.read(),
                   "gpu_mem_gb": gpu_memory_gb(self.run.device), "main_mem_gb": peak_memory_gb()}
            self.run.metrics.add("step", **row)
            show_step(bar, row, self.run.dataset.schedule.steps, self.state.totals.mean_loss)

    def save(self) -> None:
        """Write a step checkpoint. All ranks call it together."""
        self.read()
        self.run.save_step(self.state)
