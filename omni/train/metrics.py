"""metrics.jsonl: what a run measures, an event a line; and the same for TensorBoard where it is installed."""

import contextlib
import json
import os
from pathlib import Path

from omni import checkpoint
from omni.console import QUIET
from omni.errors import UserError


class MetricsFile:
    """metrics.jsonl: one JSON object a line, an event each."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "metrics.jsonl"
        self.step, self.board = 0, None  # TensorBoard's writer, which is made with the first event

    def add(self, event: str, **values) -> None:
        """Append one event; it is on the disk when this returns."""
        if QUIET:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"event": event, **values}) + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as err:
            raise UserError(f"{self.path}: can't be written ({err.strerror}); make room, then go on from the "
                            "last step checkpoint: --resume") from None
        self._mirror(event, values)

    def _mirror(self, event: str, values: dict) -> None:
        """The numbers as TensorBoard events besides, in `tensorboard/`, where it is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if self.board is None:
            self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.step + 1)
        for name, value in values.items():
            if isinstance(value, float) and "step" in values:
                self.board.add_scalar(f"{event}/{name}", value, values["step"])
        self.board.flush()

    def rows(self) -> list[dict]:
        """All whole rows. A line that a kill cut short is left out."""
        rows = []
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row, dict) and "event" in row:
                        rows.append(row)
        return rows

    def rewind(self, step: int) -> list[dict]:
        """Forget what happened after `step` of a run that is resumed from there; returns what stays.

        The row of an epoch is the last thing its evaluation writes: without it, the rest is done again.
        """
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        whole = {row["epoch"] for row in rows if row["event"] == "epoch"}
        rows = [row for row in rows if row["event"] != "answers" or row["epoch"] in whole]
        self.step = step
        checkpoint.save_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows
