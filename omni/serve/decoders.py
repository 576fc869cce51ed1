"""Decodes the media of requests in processes of their own, before the model sees them.

For each request a worker forks a child that decodes, with the limits of time and memory of
`omni.data.decoding`. The server itself can't fork it, since that is safe only where no other thread computes.
A worker is started before the model is loaded: it has one thread and no client's connection, and it is small,
so that a fork is fast. On a platform without fork the child is kept for the next request.
"""

import contextlib
import itertools
import os
import pickle
import queue
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from omni.base import machine
from omni.base.errors import MediaError
from omni.data.decoding import Decoder
from omni.data.media_reader import MediaReader
from omni.serve.protocol import ApiError, Medium

WORKERS = 2
TIMEOUT = 10.0  # seconds that a medium may take


class Decoders:
    """WORKERS processes that decode media, and the private folder through which they get the bytes."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="omni-serve-")  # readable by this user alone
        self.numbers = itertools.count()
        self.workers = [_Worker() for _ in range(WORKERS)]
        self.idle: queue.SimpleQueue = queue.SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)

    def read(self, media: Sequence[Medium], reader: MediaReader) -> dict[str, torch.Tensor]:
        """{name: pixels or log-mel}. ApiError if a medium can't be used."""
        if not media:
            return {}
        folder = Path(self.folder.name, str(next(self.numbers)))
        worker = self.idle.get()
        try:
            folder.mkdir(mode=0o700)
            requests = []
            for number, medium in enumerate(media):
                (folder / str(number)).write_bytes(medium.content)
                requests.append((medium.method, str(folder / str(number)), 0))
            try:
                answers = worker.ask(reader, requests)
            except (EOFError, OSError):  # it was killed, or hangs
                worker.restart()
                answers = worker.ask(reader, requests)
        except (EOFError, OSError) as err:
            raise ApiError(503, f"media can't be decoded now ({type(err).__name__})") from None
        finally:
            self.idle.put(worker)
            for path in (*folder.glob("*"), folder):
                with contextlib.suppress(OSError):
                    path.rmdir() if path == folder else path.unlink()
        if isinstance(answers[-1], MediaError):
            raise ApiError(400, f"{media[len(answers) - 1].name}: {answers[-1]}", "messages", "invalid_media")
        return {medium.name: torch.from_numpy(answer) for medium, answer in zip(media, answers, strict=True)}

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.folder.cleanup()


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self):
        context = machine.children()
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end,))
        self.process.start()
        other_end.close()

    def ask(self, reader: MediaReader, requests: list) -> list[np.ndarray | MediaError]:
        self.pipe.send((reader, requests))
        if not self.pipe.poll((2 * TIMEOUT + 5) * len(requests)):  # each medium is tried twice
            raise EOFError
        return self.pipe.recv()

    def restart(self) -> None:
        self.end()
        self.__init__()

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(pipe) -> None:
    """The process: answers requests until the server closes its end, or has ended."""
    machine.drop_inherited(keep=pipe)  # connections, and the server's ends of pipes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the server
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    decoder = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            reader, requests = pipe.recv()
            if decoder is None or pickle.dumps(reader) != pickle.dumps(decoder.reader):
                decoder = Decoder(reader, TIMEOUT)
            pipe.send(_decoded(decoder, requests))
    os._exit(0)  # nothing of the server that this process was copied from may run at its exit


def _decoded(decoder: Decoder, requests: list) -> list[np.ndarray | MediaError]:
    """The media up to the first that can't be used, which ends the request."""
    answers = []
    decoding = decoder.read(requests)
    for answer in decoding:
        answers.append(answer if isinstance(answer, MediaError) else answer.numpy())
        if isinstance(answer, MediaError):
            break
    decoding.close()
    return answers


class Decoded:
    """Stands in for a `MediaReader`: its media are decoded already."""

    def __init__(self, media: dict[str, torch.Tensor]):
        self.media = media

    def pixels(self, name: str, take: int = 0) -> torch.Tensor:
        return self.media[name]

    def mel(self, name: str, take: int = 0) -> torch.Tensor:
        return self.media[name]
