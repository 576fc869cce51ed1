"""Media decoded in a child process: what hangs, crashes or fills the memory ends there, and not the run."""

import contextlib
import math
import multiprocessing
import queue
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from omni.data.media_reader import MediaReader
from omni.errors import MediaError

MEMORY = 2 * 2 ** 30  # bytes that decoding one medium may take
AHEAD = 64  # media that may lie ready
THREAD = "media"
Request = tuple[str, str, int]  # the reader's method ("pixels" or "mel"), path, take


class Decoder:
    """Reads media with `reader`, a list of them in one child, started anew after one that went wrong."""

    def __init__(self, reader: MediaReader, timeout: float):
        self.reader, self.timeout = reader, timeout  # seconds that a medium may take
        self.frames: dict[str, int] = {}  # path -> mel frames of a clip, of its longest take read so far
        self.child = self.answers = None

    def read(self, requests: Sequence[Request]) -> Iterator[torch.Tensor | MediaError]:
        """Each medium in order, or the MediaError that says why there is none.

        One that gives no answer is tried again by another child: it may have been the machine that slept, or
        the run that was held by Ctrl-Z.
        """
        try:
            for done, (method, path, _) in enumerate(requests):
                medium = self._answer(requests, done)
                if isinstance(medium, MediaError):
                    yield medium
                    continue
                if method == "mel":
                    self.frames[path] = max(len(medium), self.frames.get(path, 0))
                yield torch.from_numpy(medium)
        finally:
            self._end()

    def _answer(self, requests: Sequence[Request], done: int) -> np.ndarray | MediaError:
        for _attempt in range(2):
            if self.child is None:
                self._start(requests[done:])
            try:
                answer = self.answers.get(timeout=self.timeout)
                if answer is not None:
                    return answer
                self.answers.put(None)
                reason = "it crashed its decoder"
            except queue.Empty:
                reason = f"decoding it took longer than {self.timeout:g} s (decode_timeout_s)"
            self._end()
        return MediaError(reason)

    def _start(self, requests: Sequence[Request]) -> None:
        # The child is born with its list and only ever sends, so the two can't wait for each other.
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe(duplex=False)
        self.child = fork.Process(target=_serve, daemon=True,
                                  args=(self.reader, requests, ours, theirs, self.timeout))
        self.child.start()
        theirs.close()
        # A pipe holds few media: a thread takes them out while the run computes.
        self.answers = queue.Queue(AHEAD)
        threading.Thread(target=_receive, args=(ours, self.answers), name=THREAD, daemon=True).start()

    def _end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.join(1)
            # So the thread, too, comes to its end; a child that the kernel doesn't let go is not waited for.
            with contextlib.suppress(queue.Empty):
                while self.answers.get(timeout=1) is not None:
                    pass
            self.child = None


def _receive(pipe, answers: queue.Queue) -> None:
    """The thread: puts what the child sends to `answers`, and at its end None."""
    with pipe, contextlib.suppress(EOFError, OSError):
        while True:
            answers.put(pipe.recv())
    answers.put(None)


def _serve(reader: MediaReader, requests: Sequence[Request], ours, answers, timeout: float) -> None:
    """The child: sends a medium a request, until all are sent or the run is gone."""
    ours.close()
    # A medium's takes are asked for one after another: it is decoded once for all of them.
    reader.picture, reader.power = lru_cache(1)(reader.picture), lru_cache(1)(reader.power)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # thread pools don't survive a fork, and the bits shall not depend on them
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for method, path, take in requests:
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
        try:
            answers.send(value)
        except BrokenPipeError:
            return
