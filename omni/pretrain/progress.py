"""How far a stage has come: saved every few minutes, so that it can be stopped and continued."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.errors import UserError

FREE = {"device", "save_every_minutes"}  # keys that may differ when a stage is continued


@dataclass
class Progress:
    """What changes from step to step besides the model and its optimizer."""

    path: Path
    config: PretrainConfig
    total: int  # steps
    step: int = 0
    loss_sum: float = 0.0  # of the epoch
    count_sum: int = 0
    minutes: float = 0.0  # of the times before
    started: float = field(default_factory=time.time)
    saved: float = field(default_factory=time.time)

    @classmethod
    def of(cls, config: PretrainConfig, total: int) -> "Progress":
        output = Path(config.output)
        return cls(output.with_name(f"{output.stem}.resume.pt"), config, total)

    @property
    def all_minutes(self) -> float:
        return self.minutes + (time.time() - self.started) / 60

    def start_epoch(self, first_step: int) -> None:
        """Sums begin anew, unless the epoch is continued."""
        if self.step == first_step:
            self.loss_sum, self.count_sum = 0.0, 0

    def add(self, loss: torch.Tensor, count: int) -> None:
        self.loss_sum += float(loss)
        self.count_sum += count
        self.step += 1

    @property
    def loss(self) -> float:
        return self.loss_sum / max(1, self.count_sum)

    def due(self) -> bool:
        return time.time() - self.saved > 60 * self.config.save_every_minutes

    def save(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        checkpoint.save(self.path, "pretraining", {
            "config": dataclasses.asdict(self.config), "total": self.total, "step": self.step,
            "loss_sum": self.loss_sum, "count_sum": self.count_sum, "minutes": self.all_minutes,
            "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]})
        self.saved = time.time()

    def load(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Continue from the file. UserError if there is none, or it is of another config or other data."""
        saved = checkpoint.load(self.path, "pretraining", "start without --resume")
        own, theirs = dataclasses.asdict(self.config), saved["config"]
        changed = sorted(key for key in own | theirs if key not in FREE and own.get(key) != theirs.get(key))
        if changed:
            raise UserError(f"{self.path}: was made with another {', '.join(changed)}; "
                            "start without --resume")
        if saved["total"] != self.total:
            raise UserError(f"{self.path}: was made for {saved['total']:,} steps, and the data now gives "
                            f"{self.total:,}; start without --resume")
        checkpoint.load_state(model, saved["model"], "the model", self.path)
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.loss_sum, self.count_sum = saved["step"], saved["loss_sum"], saved["count_sum"]
        self.minutes = saved["minutes"]
