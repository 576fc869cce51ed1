"""What can interrupt training: signals, a loss that is not finite, a GPU that is out of memory."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator

import torch

from omni.base.console import say
from omni.base.errors import UserError
from omni.data.batch import Batch
from omni.data.loader import Step
from omni.train.metrics import MetricsFile
from omni.train.state import TrainState

FULL_STEP = "raise gradient_accumulation_steps or lower max_length"  # when a step needs too much GPU memory
NAMES_SHOWN = 8  # samples of a bad step that are named on the screen; metrics.jsonl names all


class StopSignal:
    """SIGINT and SIGTERM. In `deferred` blocks the first only sets `requested`; otherwise the process ends.

    Ending at once is safe: a file is replaced as a whole, and a cut-off line of metrics.jsonl is ignored.
    """

    def __init__(self):
        self.requested = self._deferred = False
        self._advice = "start the same command again; features that were computed are kept"
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """For the training loop, which looks at `requested` after each step and saves before it stops."""
        self._deferred, self._advice = True, "continue with: --resume"
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number, frame) -> None:
        if self.requested or not self._deferred:
            say(f"stopped; {self._advice}")
            os._exit(130)  # sys.exit would wait for workers and for a save that is being written
        self.requested = True


def skip_bad_step(state: TrainState, samples: list[str], epoch: int, max_in_a_row: int, metrics: MetricsFile,
                  save: Callable[[], None]) -> None:
    """Count and report a step that was not applied because its loss or gradients are not finite.

    `samples` names the samples of the step. After `max_in_a_row` such steps the state before them is saved
    and a UserError ends the run.
    """
    state.add_bad_step()
    bad = state.bad_steps_in_a_row
    metrics.add("bad_step", epoch=epoch + 1, step=state.step, in_a_row=bad, samples=samples)
    more = f" and {len(samples) - NAMES_SHOWN} more" if len(samples) > NAMES_SHOWN else ""
    say(f"step {state.step:,} is skipped: its loss or gradients are not finite ({bad} in a row, "
        f"{max_in_a_row} end the run): {', '.join(samples[:NAMES_SHOWN])}{more}")
    if bad == max_in_a_row:
        save()
        raise UserError(f"{bad} steps in a row had no finite loss and gradients. Step {state.step - bad:,}, "
                        "before them, is saved. Fix the samples named in metrics.jsonl, lower learning_rate "
                        "or raise max_bad_steps, then --resume")


def explained(steps: Iterator[Step], save: Callable[[], None] | None) -> Iterator[Step]:
    """The same steps. If a GPU is too full for their batches, that is explained as in a step."""
    while True:
        with explain_out_of_memory(FULL_STEP, save=save, where="copying batches ahead"):
            step = next(steps, None)
        if step is None:
            return
        yield step


@contextlib.contextmanager
def explain_out_of_memory(remedy: str, batches: Iterable[Batch] = (),
                          save: Callable[[], None] | None = None,
                          where: str = "evaluation") -> Iterator[None]:
    """Turn a GPU's out-of-memory error into a UserError with the shapes of `batches` and the `remedy`.

    Without `batches` the message says that it happened in `where`. `save`, if given, is called first.
    """
    try:
        yield
    except RuntimeError as err:
        if not isinstance(err, torch.OutOfMemoryError) and "MPS backend out of memory" not in str(err):
            raise
        if save is not None:
            save()
        shapes = ", ".join(batch.summary for batch in batches)
        where = f"a step of {shapes}" if shapes else where
        raise UserError(f"out of GPU memory in {where}: {remedy}, then continue from the last checkpoint "
                        "with --resume") from None
