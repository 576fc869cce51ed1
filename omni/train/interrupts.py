"""What ends a run early, and leaves it so that it can go on: signals, bad steps, a GPU that is full."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator

import torch

from omni.config import SFTConfig
from omni.console import say
from omni.data.batch import Batch
from omni.errors import UserError
from omni.train.metrics import MetricsFile

SHOWN = 8  # samples of a bad step that are named on the screen; the metrics name all


class StopSignal:
    """SIGINT and SIGTERM let the step finish and be saved. Outside the loop, or asked twice, it ends at once.

    All that a run writes is written whole or not at all, so leaving at once harms nothing.
    """

    def __init__(self):
        self.asked = self.training = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, number, frame) -> None:
        if self.asked or not self.training:
            say("stopped; go on with: --resume")
            os._exit(130)  # not sys.exit: whatever is under way (workers, a save) is not waited for
        self.asked = True


def leave_out(state: dict, names: list[str], epoch: int, metrics: MetricsFile, save,
              config: SFTConfig) -> None:
    """Count a step whose loss or gradients are not finite, and name its samples. It was not applied.

    Too many in a row end the run; what `save` writes is from before them.
    """
    if not state["bad"]:
        state["held"] = state["sums"]  # before the first of them, even if an epoch ends between
    state["bad"] += 1
    metrics.add("bad_step", epoch=epoch + 1, step=state["step"], in_a_row=state["bad"], samples=names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    say(f"step {state['step']:,} is left out, its loss or gradients are not finite ({state['bad']} in a row, "
        f"{config.max_bad_steps} end the run): {', '.join(names[:SHOWN])}{more}")
    if state["bad"] == config.max_bad_steps:
        save()
        raise UserError(f"{state['bad']} steps in a row had no finite loss and gradients; step "
                        f"{state['step'] - state['bad']:,}, before them, is saved: mend the samples that "
                        "metrics.jsonl names, lower learning_rate, or raise max_bad_steps, and --resume")


@contextlib.contextmanager
def memory_told(batches: Iterable[Batch], lower: str, save=None) -> Iterator[None]:
    """A full GPU becomes one line with the batches' shapes and what to lower; `save` keeps what there is."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        if save is not None:
            save()
        shapes = ", ".join(batch.shape for batch in batches)
        given = f"a step of {shapes}" if shapes else "evaluation"
        raise UserError(f"out of GPU memory in {given}: {lower}; what was saved stays, go on with "
                        "--resume") from None
