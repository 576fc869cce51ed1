"""Training steps of a workload, taken as `sft_omni.py` takes them."""

import gc
import time
from functools import partial

import torch

import sft_omni
from omni.base.distributed import ALONE
from omni.train import graphs, optim
from omni.train.prefetch import prefetch
from omni.train.run import Run
from tests.bench import machine
from tests.bench.workload import Workload


class Training:
    """An optimizer, and what takes the steps: by graphs where a run would capture them."""

    def __init__(self, w: Workload, device: torch.device):
        self.w, self.device, optimizer = w, device, w.optimizer()
        update = optim.Update(optimizer, w.config.grad_clip, w.config.max_bad_steps)
        run = Run(w.config, device, ALONE, w.model, w.model, update, w.dataset, None, None, None, {})
        self.take = graphs.choose(run, partial(sft_omni.train_step, run))
        gc.collect()
        gc.freeze()  # as a run does

    def __call__(self, first: int, count: int) -> torch.Tensor:
        """Take `count` steps from step `first`; returns the figures of each (count, 3), on the device."""
        self.w.model.train()
        steps = (self.w.dataset[number] for number in range(first, first + count))
        return torch.stack([self.take(step.batches, int(step.counts[:, 1].sum()))
                            for step in prefetch(steps, self.device, self.take.prepare)])

    def seconds_a_step(self, steps: int, warm: int) -> float:
        """Mean seconds of a step, after `warm` steps from the first one on."""
        self(0, warm)
        machine.synchronize(self.device)
        begun = time.perf_counter()
        self(warm, steps)
        machine.synchronize(self.device)
        return (time.perf_counter() - begun) / steps
