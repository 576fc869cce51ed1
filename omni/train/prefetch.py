"""Training batches on their device before they are needed."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from omni.data.batch import Batch, tensors_of
from omni.data.loader import Step

AHEAD = 4  # steps that wait on the device
THREAD = "prefetch"


def prefetch(steps: Iterator[Step], device: torch.device,
             prepare: Callable[[Batch], Batch] = lambda batch: batch,
             threaded: bool | None = None) -> Iterator[Step]:
    """The steps with their batches, as `prepare` makes them of those on the CPU, on `device`.

    For a GPU a thread collates and copies ahead, so that neither the GPU nor the loop waits for it.
    """
    def on_device(step: Step) -> Step:
        batches = [prepare(batch) for batch in step.batches]
        if device.type == "cuda":  # else the copy would wait for the GPU
            batches = [batch.pinned() for batch in batches]
        return replace(step, batches=[batch.to(device) for batch in batches])

    if threaded or (threaded is None and device.type == "cuda"):
        yield from _threaded(steps, on_device, device)
    else:
        yield from map(on_device, steps)


@functools.cache
def _copy_stream(index: int) -> torch.cuda.Stream:
    """One for all epochs: the memory of a stream is not used by another one."""
    return torch.cuda.Stream(index)


def _threaded(steps: Iterator[Step], on_device: Callable[[Step], Step],
              device: torch.device) -> Iterator[Step]:
    waiting: queue.Queue = queue.Queue(AHEAD)
    stopped = threading.Event()
    cuda = device.type == "cuda"
    stream = _copy_stream(torch.cuda.current_device()) if cuda else None

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            if cuda:
                torch.cuda.set_device(stream.device)
            for step in steps:
                with torch.cuda.stream(stream):  # with None it does nothing
                    ready = on_device(step)
                    copied = stream.record_event() if cuda else None
                put((ready, copied))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as err:  # it is raised in the loop
            put(err)

    thread = threading.Thread(target=work, name=THREAD, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            step, copied = item
            if cuda:
                torch.cuda.current_stream().wait_event(copied)
                for batch in step.batches:
                    for tensor in tensors_of(batch):  # its memory is not used again before the step is done
                        tensor.record_stream(torch.cuda.current_stream())
            yield step
    finally:
        stopped.set()
        thread.join()
