"""What a run says: a line on the screen, and a row in metrics.jsonl."""

import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from omni import checkpoint


def say(line: str) -> None:
    """A line on the screen, above the progress bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class MetricsFile:
    """metrics.jsonl: one JSON object a line, an event each."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "metrics.jsonl"
        self.step, self.board = 0, None  # TensorBoard's writer, which is made with the first event

    def add(self, event: str, **values) -> None:
        """Append one event; it is on the disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"event": event, **values}) + "\n")
            f.flush()
            os.fsync(f.fileno())
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
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return rows

    def rewind(self, step: int) -> list[dict]:
        """Forget what happened after `step` of a run that is resumed from there; returns what stays."""
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        self.step = step
        checkpoint.save_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def epoch_lines(epoch: int, epochs: int, loss: float, figures: dict[str, float],
                swapped: dict[str, float]) -> list[str]:
    """The held-out figures of an epoch as a person reads them; beside each, the same with media swapped."""
    def share(name):
        if name not in figures:
            return "-"
        beside = f"  (media swapped: {swapped[name]:.1%})" if name in swapped else ""
        return f"{figures[name]:.1%}{beside}"

    lines = [f"Epoch {epoch}/{epochs}: loss={loss:.3f}, text_acc={share('text_acc')}"]
    for name, label in (("image_qa", "Image QA"), ("audio_wer", "Audio WER")):
        if name in figures:
            lines.append(f"  → {label}: {share(name)}")
    for name in sorted(figures):
        if "/" in name:
            lines.append(f"    {name}: {share(name)}")
    return lines
