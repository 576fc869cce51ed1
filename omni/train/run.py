"""The objects that the training loop uses."""

from dataclasses import dataclass

import torch
from torch import nn

from omni.base.config import SFTConfig
from omni.base.distributed import World
from omni.data.loader import StepDataset
from omni.model.omni import OmniNetwork
from omni.train.interrupts import StopSignal
from omni.train.metrics import MetricsFile
from omni.train.optim import Update
from omni.train.run_dir import RunDir
from omni.train.state import TrainState


@dataclass(frozen=True)
class Run:
    """The objects that stay the same for a whole run. What changes between steps is in `TrainState`."""

    config: SFTConfig
    device: torch.device
    world: World
    model: OmniNetwork
    wrapped: nn.Module  # what is trained: the model itself, in DDP, or sharded by FSDP2
    update: Update  # the optimizer, and how its steps are taken
    dataset: StepDataset
    metrics: MetricsFile
    run_dir: RunDir
    stop: StopSignal
    fingerprints: dict[str, str]  # hashes of parts and data, to detect changes on resume

    def save_step(self, state: TrainState) -> None:
        """Write a step checkpoint. All ranks call it together."""
        self.run_dir.steps.save(state, self.model, self.update.optimizer, self.config, self.fingerprints)
