"""metrics.jsonl: what a run measures, one event per line; and TensorBoard, wandb or trackio, if asked for."""

import contextlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from omni.base import checkpoint
from omni.base.config import SFTConfig
from omni.base.console import say
from omni.base.distributed import ALONE, World
from omni.base.errors import UserError
from omni.train.track import Tracker


class MetricsFile:
    """The metrics.jsonl of a run: one JSON object per line, each with its "event". Only rank 0 writes."""

    def __init__(self, folder: str | Path, world: World = ALONE, config: SFTConfig | None = None):
        self.path, self.world, self.config = Path(folder) / "metrics.jsonl", world, config
        self._resumed_at, self._tensorboard = 0, None  # the SummaryWriter, made with the first event
        self._tracker: Tracker | None = None  # made by `rewind`, which knows where the run begins

    def add(self, event: str, **values) -> None:
        """Append one event and flush it to the disk. UserError if it can't be written."""
        if not self.world.first:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"event": event, **values}) + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as err:
            raise UserError(f"{self.path}: can't be written ({err.strerror}); make room, then continue from "
                            "the last step checkpoint: --resume") from None
        self._add_to_tensorboard(event, values)
        if self._tracker is not None:
            self._tracker.add(event, values)

    def _add_to_tensorboard(self, event: str, values: dict) -> None:
        """Write the event's floats to `tensorboard/` too, if TensorBoard is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path.parent / "tensorboard"),
                                              purge_step=self._resumed_at + 1)
        for name, value in values.items():
            if isinstance(value, float) and "step" in values:
                self._tensorboard.add_scalar(f"{event}/{name}", value, values["step"])
        self._tensorboard.flush()

    def rows(self) -> list[dict]:
        """All events. A line that a kill cut short is ignored."""
        rows = []
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row, dict) and "event" in row:
                        rows.append(row)
        return rows

    def rewind(self, step: int) -> list[dict]:
        """Remove the events after `step`, from which the run resumes; returns those that remain.

        The evaluation of an epoch writes its "epoch" row last. If that row is missing, the evaluation is
        repeated, so its other rows are removed too. All ranks call it together.
        """
        return self.world.from_first(lambda: self._rewind(step))

    def _rewind(self, step: int) -> list[dict]:
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        evaluated = {row["epoch"] for row in rows if row["event"] == "epoch"}
        rows = [row for row in rows if row["event"] != "answers" or row["epoch"] in evaluated]
        self._resumed_at = step
        checkpoint.save_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        if self.config is not None and self.config.track is not None:
            self._tracker = Tracker(self.config.track, self.path.parent, asdict(self.config), step)
        return rows


class Throughput:
    """Samples and answer tokens per second, since the start or the last `read`."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self.started, self.samples, self.tokens = time.time(), 0, 0

    def add(self, samples: int, tokens: int) -> None:
        self.samples += samples
        self.tokens += tokens

    def read(self) -> dict[str, float]:
        """{"samples_per_s", "tokens_per_s"}, then restart the count."""
        seconds = time.time() - self.started
        rates = {"samples_per_s": self.samples / seconds, "tokens_per_s": self.tokens / seconds}
        self._restart()
        return rates


def show_step(bar: tqdm, row: dict, steps: int, mean_loss: float) -> None:
    """Show a "step" row of metrics.jsonl on the epoch's bar; without a terminal, as a line."""
    if bar.disable:
        say(f"step {row['step']:,} of {steps:,}: loss {row['loss']:.3f}, lr {row['lr']:.1e}, "
            f"{row['samples_per_s']:.1f} samples/s")
    bar.set_postfix(loss=f"{mean_loss:.3f}", lr=f"{row['lr']:.1e}", samples_s=f"{row['samples_per_s']:.0f}",
                    refresh=False)
