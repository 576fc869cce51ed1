"""Media decoded in a child process: what hangs, crashes or fills the memory ends there, and not the run."""

import math
import multiprocessing
import resource
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from omni.audio import MediaError
from omni.collate import MediaReader

MEMORY = 2 * 2 ** 30  # bytes that decoding one medium may take
Request = tuple[str, str, int]  # the reader's method ("pixels" or "mel"), path, take


def read_apart(reader: MediaReader, requests: Sequence[Request],
               timeout: float) -> Iterator[torch.Tensor | MediaError]:
    """Each medium of `requests` in order, or the MediaError that says why there is none."""
    child, pipe = _start(reader, timeout)
    sent = 0
    try:
        for done in range(len(requests)):
            try:
                while sent < min(done + 2, len(requests)):  # one ahead, so that the child never waits
                    pipe.send(requests[sent])
                    sent += 1
                if not pipe.poll(timeout):
                    raise MediaError(f"decoding it took longer than {timeout:g} s (decode_timeout_s)")
                value = pipe.recv()
                yield value if isinstance(value, MediaError) else torch.from_numpy(value)
            except (MediaError, EOFError, OSError) as err:
                _stop(child, pipe)
                child, pipe = _start(reader, timeout)
                sent = done + 1
                yield err if isinstance(err, MediaError) else MediaError("it crashed its decoder")
    finally:
        _stop(child, pipe)


def _start(reader: MediaReader, timeout: float):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=_serve, args=(reader, ours, theirs, timeout), daemon=True)
    child.start()
    theirs.close()
    return child, ours


def _stop(child, pipe) -> None:
    pipe.close()
    child.kill()
    child.join(1)


def _serve(reader: MediaReader, ours, pipe, timeout: float) -> None:
    """The child: answers requests until the run closes its end of the pipe, or dies."""
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # thread pools don't survive a fork, and the bits shall not depend on them
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while True:
        try:
            method, path, take = pipe.recv()
        except EOFError:
            return
        signal.alarm(math.ceil(timeout) + 5)  # ends a child that hangs when the run itself was killed
        try:
            value = getattr(reader, method)(path, take).numpy()
        except MediaError as err:
            value = err
        except MemoryError:
            value = MediaError("decoding it takes too much memory")
        except Exception as err:  # of whatever a decoder raises on a file made to break it
            value = MediaError(f"not readable ({type(err).__name__})")
        signal.alarm(0)
        pipe.send(value)
