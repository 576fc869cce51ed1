"""What a run says: a line on the screen, and a row in metrics.jsonl."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from omni import checkpoint, distributed
from omni.config import UserError

QUIET = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun starts, the first one speaks


def open_streams() -> None:
    """Stand in for closed streams, whose numbers would go to the next files opened: a checkpoint, say."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))


def command(main: Callable[[], object]) -> None:
    """Run a command: what its user has to mend is one line and exit 2, Ctrl-C is exit 130."""
    with contextlib.suppress(AttributeError):  # a terminal may know no arrows, a file's name be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        distributed.leave(2)
    except KeyboardInterrupt:
        distributed.leave(130)
    except SystemExit as err:
        distributed.leave(err.code)
    except Exception:
        traceback.print_exc()
        distributed.leave(1)


def say(line: str) -> None:
    """A line on the screen, above the progress bar if there is one. A screen that is gone ends no run."""
    if QUIET:
        return
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):  # a pipe nobody reads, a full disk, or closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


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
