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


class Decoder:
    """Reads media with `reader`, in one child for all of them, started anew after one that went wrong."""

    def __init__(self, reader: MediaReader, timeout: float):
        self.reader, self.timeout = reader, timeout  # seconds that a medium may take
        self.frames: dict[str, int] = {}  # path -> mel frames of a clip, of its longest take read so far
        self.child = self.pipe = None

    def read(self, requests: Sequence[Request]) -> Iterator[torch.Tensor | MediaError]:
        """Each medium in order, or the MediaError that says why there is none.

        One that gives no answer is tried again by another child: it may have been the machine that slept, or
        the run that was held by Ctrl-Z.
        """
        sent = 0
        for done, (method, path, _) in enumerate(requests):
            for _attempt in range(2):
                try:
                    if self.child is None:
                        self._start()
                        sent = done
                    while sent < min(done + 2, len(requests)):  # one ahead, so that the child never waits
                        self.pipe.send(requests[sent])
                        sent += 1
                    if self.pipe.poll(self.timeout):
                        value = self.pipe.recv()
                        break
                    value = MediaError(f"decoding it took longer than {self.timeout:g} s (decode_timeout_s)")
                except (EOFError, OSError):
                    value = MediaError("it crashed its decoder")
                self.close()
            if isinstance(value, MediaError):
                yield value
                continue
            if method == "mel":
                self.frames[path] = max(len(value), self.frames.get(path, 0))
            yield torch.from_numpy(value)

    def _start(self) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, theirs = fork.Pipe()
        arguments = (self.reader, self.pipe, theirs, self.timeout)
        self.child = fork.Process(target=_serve, args=arguments, daemon=True)
        self.child.start()
        theirs.close()

    def close(self) -> None:
        """End the child, if there is one; another `read` starts one again."""
        if self.child is not None:
            self.pipe.close()
            self.child.kill()
            self.child.join(1)
            self.child = None


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
