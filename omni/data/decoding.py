"""Decodes media in a child process, so that a file that hangs, crashes or fills the memory can't end the run.
"""

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

from omni.data.media import only_media_errors
from omni.data.media_reader import MediaReader
from omni.errors import MediaError

MEMORY = 2 * 2 ** 30  # bytes that the child may allocate for decoding
AHEAD = 64  # decoded media that may wait in the queue
THREAD = "media"
Request = tuple[str, str, int]  # the reader's method ("pixels" or "mel"), path, take


class Decoder:
    """Reads lists of media with `reader` in a child process. A child that fails is replaced."""

    def __init__(self, reader: MediaReader, timeout: float):
        self.reader, self.timeout = reader, timeout  # seconds that a medium may take
        self.frames: dict[str, int] = {}  # path of a clip -> mel frames of its longest take read so far
        self.child = self.answers = None

    def read(self, requests: Sequence[Request]) -> Iterator[torch.Tensor | MediaError]:
        """Each requested medium in order, or the MediaError that says why it can't be used.

        A medium without an answer is tried once more in a new child: the machine may have slept, or Ctrl-Z
        may have suspended the run.
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
                reason = "its decoder crashed"
            except queue.Empty:
                reason = f"decoding it took longer than {self.timeout:g} s (decode_timeout_s)"
            self._end()
        return MediaError(reason)

    def _start(self, requests: Sequence[Request]) -> None:
        # The child gets the whole list when it is forked and then only sends, so there can be no deadlock.
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        self.child = fork.Process(target=_serve, daemon=True,
                                  args=(self.reader, requests, receiver, sender, self.timeout))
        self.child.start()
        sender.close()
        # A pipe's buffer holds few media, so a thread empties it while the run computes.
        self.answers = queue.Queue(AHEAD)
        threading.Thread(target=_receive, args=(receiver, self.answers), name=THREAD, daemon=True).start()

    def _end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.join(1)
            # Emptying the queue lets the thread end too. A child that can't be killed is not waited for.
            with contextlib.suppress(queue.Empty):
                while self.answers.get(timeout=1) is not None:
                    pass
            self.child = None


def _receive(receiver, answers: queue.Queue) -> None:
    """The thread: moves what the child sends to `answers`, with None after the last."""
    with receiver, contextlib.suppress(EOFError, OSError):
        while True:
            answers.put(receiver.recv())
    answers.put(None)


def _serve(reader: MediaReader, requests: Sequence[Request], receiver, sender, timeout: float) -> None:
    """The child: sends an answer for each request, until all are sent or the run has ended."""
    receiver.close()
    # All takes of a medium are requested one after another, so it is decoded once for all of them.
    reader.plain_image, reader.power = lru_cache(1)(reader.plain_image), lru_cache(1)(reader.power)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run itself answers Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # thread pools don't survive a fork, and rounding must not depend on them
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for method, path, take in requests:
        signal.alarm(math.ceil(timeout) + 5)  # ends a child that hangs after the run itself was killed
        try:
            with only_media_errors("a medium", path):
                answer = getattr(reader, method)(path, take).numpy()
        except MediaError as err:
            answer = err
        signal.alarm(0)
        try:
            sender.send(answer)
        except BrokenPipeError:
            return
