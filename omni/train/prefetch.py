"""Training batches on their device before they are needed."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from omni.data.batch import Batch, tensors_of
from omni.data.loader import Step

AHEAD = 4  # steps that wait on the device
THREAD = "prefetch"
T = TypeVar("T")


def prefetch(steps: Iterator[Step], device: torch.device,
             prepare: Callable[[Batch], Batch] = lambda batch: batch,
             threaded: bool | None = None) -> Iterator[Step]:
    """The same steps; their batches have been changed by `prepare` on the CPU, then copied to `device`.

    For a GPU a thread does this ahead of the loop, so that neither waits for it.
    """
    def on_device(step: Step) -> Step:
        batches = [prepare(batch) for batch in step.batches]
        if device.type == "cuda":  # else the copy would wait for the GPU
            batches = [batch.pinned() for batch in batches]
        return replace(step, batches=[batch.to(device) for batch in batches])

    if threaded or (threaded is None and device.type == "cuda"):
        yield from _threaded(steps, on_device, device, _on_device)
    else:
        yield from map(on_device, steps)


def ahead(items: Iterator[T], device: torch.device, threaded: bool | None = None) -> Iterator[T]:
    """The items in order; for a GPU a thread makes them ahead, on the CPU."""
    if threaded or (threaded is None and device.type == "cuda"):
        yield from _threaded(items, lambda item: item, device, lambda item: [])
    else:
        yield from items


def _on_device(step: Step) -> list[torch.Tensor]:
    return [tensor for batch in step.batches for tensor in tensors_of(batch)]


@functools.cache
def _copy_stream(index: int) -> torch.cuda.Stream:
    """One for all epochs: memory that was allocated on a stream is reused on that stream alone."""
    return torch.cuda.Stream(index)


def _threaded(items: Iterator, prepare: Callable, device: torch.device,
              tensors: Callable[[object], list[torch.Tensor]]) -> Iterator:
    """`prepare(item)` of each item, computed in a thread. `tensors` lists those of a result on the GPU."""
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
            for item in items:
                with torch.cuda.stream(stream):  # with None it does nothing
                    ready = prepare(item)
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
            ready, copied = item
            if cuda:
                torch.cuda.current_stream().wait_event(copied)
                for tensor in tensors(ready):  # so that its memory is not reused before the step is done
                    tensor.record_stream(torch.cuda.current_stream())
            yield ready
    finally:
        stopped.set()
        thread.join()
