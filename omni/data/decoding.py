"""Decodes media in child processes, so that a file that hangs, crashes or fills the memory can't end the run.
"""

import contextlib
import itertools
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from omni.base import machine
from omni.base.errors import MediaError, UserError
from omni.data.media import only_media_errors
from omni.data.media_reader import MediaReader

MEMORY = 2 * 2 ** 30  # bytes that a child may allocate for decoding
AHEAD = 64  # decoded media that may wait in the queues of all children
LEAST_AHEAD = 8  # in the queue of each
MEDIA_PER_CHILD = {"fork": 16, "spawn": 500}  # fewer are not worth the start of another child
START = 300  # seconds that a child may need to start: a slow laptop may take a minute to import PyTorch
READY = "ready"  # a child's first message
THREAD = "media"
Request = tuple[str, str, int]  # the reader's method ("pixels" or "mel"), path, take


class Decoder:
    """Reads lists of media with `reader` in `workers` child processes ("auto": as many as cores).

    The results and their order don't depend on `workers`. With `keep` the children wait for more work until
    this process ends. A forked child holds the memory that this process had at the fork, even what is freed
    here later. So children that are needed throughout a run should be forked early and kept.
    """

    def __init__(self, reader: MediaReader, timeout: float, workers: int | str = 1, keep: bool = False):
        self.reader, self.timeout = reader, timeout  # seconds that a medium may take
        self.idle = None if keep else machine.idle_seconds()
        self.workers = machine.most_children() if workers == "auto" else max(1, workers)
        self._children: list[_Child] = []
        self.frames: dict[str, int] = {}  # path of a clip -> mel frames of its longest take read so far

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_children": []}  # another process starts its own

    def read(self, requests: Sequence[Request]) -> Iterator[torch.Tensor | MediaError]:
        """Each requested medium in order, or the MediaError that says why it can't be used."""
        # A medium's takes follow one another and stay together: a child decodes it once for all of them.
        media = [list(takes) for _, takes in itertools.groupby(requests, key=lambda request: request[:2])]
        worth = MEDIA_PER_CHILD[machine.children().get_start_method()]
        count = min(self.workers, -(-len(media) // worth))
        self._children += [_Child(self.reader, self.timeout, self.idle)
                           for _ in range(count - len(self._children))]
        children = self._children[:count]
        try:
            for first, child in enumerate(children):
                child.begin(list(itertools.chain(*media[first::count])), max(LEAST_AHEAD, AHEAD // count))
            for takes, child in zip(media, itertools.cycle(children), strict=False):
                for method, path, _ in takes:
                    medium = child.next()
                    if isinstance(medium, MediaError):
                        yield medium
                        continue
                    if method == "mel":
                        self.frames[path] = max(len(medium), self.frames.get(path, 0))
                    yield torch.from_numpy(medium)
        finally:
            left = [child for child in children if child.busy or self.idle == 0]
            for child in left:
                child.kill()
            for child in left:
                child.end()


class _Child:
    """A child process that reads requests and sends the media in order. One that fails is replaced."""

    def __init__(self, reader: MediaReader, timeout: float, idle: float | None):
        self.reader, self.timeout = reader, timeout
        self.idle = idle  # seconds that it waits for more work; None: for ever
        self.requests: list[Request] = []
        self.ahead = self.done = 0  # done: answers received
        self.process = self.sender = self.answers = None
        self.ready = False

    @property
    def busy(self) -> bool:
        """Whether answers are left to receive."""
        return self.done < len(self.requests)

    def begin(self, requests: list[Request], ahead: int) -> None:
        """Let the child read `requests`. At most `ahead` media wait to be received."""
        self.requests, self.ahead, self.done = requests, ahead, 0
        if self.process is not None and not self.process.is_alive():  # it was idle for long
            self.end()
        if self.process is None:
            self._start()
        else:
            self._send()

    def _start(self) -> None:
        context = machine.children()
        (asked, self.sender), (receiver, sender) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, daemon=True, args=(
            self.reader, asked, self.sender, receiver, sender, self.timeout, self.idle))
        self.process.start()
        asked.close()
        sender.close()
        # A pipe's buffer holds few media, so a thread empties it while the run computes.
        self.answers, self.ready = queue.Queue(self.ahead), False
        threading.Thread(target=_receive, args=(receiver, self.answers), name=THREAD, daemon=True).start()
        self._send()

    def _send(self) -> None:
        # The child has sent all it was asked for, and reads the whole list before it sends more: no deadlock.
        with contextlib.suppress(OSError):  # it has ended, which `next` will notice
            self.sender.send(self.requests[self.done:])

    def next(self) -> np.ndarray | MediaError:
        """The next answer.

        A medium without an answer is tried once more in a new child: the machine may have slept, which some
        clocks count, or Ctrl-Z may have suspended the run.
        """
        for _attempt in range(2):
            if self.process is None:
                self._start()
            self._wait_until_ready()
            try:
                answer = self.answers.get(timeout=self.timeout)
                if answer is not None:
                    self.done += 1
                    return answer
                self.answers.put(None)
                self.process.join(1)
                full = self.process.exitcode == machine.OUT_OF_MEMORY
                reason = "decoding it takes too much memory" if full else "its decoder crashed"
            except queue.Empty:
                reason = f"decoding it took longer than {self.timeout:g} s (decode_timeout_s)"
            self.end()
        self.done += 1
        return MediaError(reason)

    def _wait_until_ready(self) -> None:
        """UserError if the child ends before it reads anything. Its start is not the medium's time."""
        if self.ready:
            return
        with contextlib.suppress(queue.Empty):
            self.ready = self.answers.get(timeout=START) is not None
        if not self.ready:
            self.answers.put(None)
            raise UserError("the process that decodes media could not start; what it printed is above. Close "
                            "other programs if memory is short, then try again")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(1)
            self.sender.close()
            # Emptying the queue lets the thread end too. A child that can't be killed is not waited for.
            with contextlib.suppress(queue.Empty):
                while self.answers.get(timeout=1) is not None:
                    pass
            self.process = None


def _receive(receiver, answers: queue.Queue) -> None:
    """The thread: moves what the child sends to `answers`, with None after the last."""
    with receiver, contextlib.suppress(EOFError, OSError):
        while True:
            answers.put(receiver.recv())
    answers.put(None)


def _serve(reader: MediaReader, asked, asker, receiver, sender, timeout: float, idle: float | None) -> None:
    """The child: sends an answer for each request, until all are sent or the run has ended.

    It gets lists of requests from `asked`. `asker` and `receiver` are the parent's ends of the two pipes.
    """
    asker.close()
    receiver.close()
    reader.plain_image, reader.power = lru_cache(1)(reader.plain_image), lru_cache(1)(reader.power)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run itself answers Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # thread pools don't survive a fork, and rounding must not depend on them
    machine.limit_memory(MEMORY)
    with contextlib.suppress(OSError, EOFError):  # the run has ended
        sender.send(READY)
        wait = START
        while asked.poll(wait):
            for method, path, take in asked.recv():
                machine.end_after(timeout + 5)  # a child that hangs after the run itself was killed
                try:
                    with only_media_errors("a medium", path):
                        answer = getattr(reader, method)(path, take).numpy()
                except MediaError as err:
                    answer = err
                machine.end_after(0)
                sender.send(answer)
            wait = idle
