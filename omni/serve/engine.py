"""Computes one answer at a time, in the order of the requests; an answer that nobody waits for is dropped."""

import queue
import sys
import threading
import time
import traceback
from collections import deque
from typing import NamedTuple

import torch

from omni.base.errors import UserError
from omni.chat import OmniModel
from omni.data.batch import Batch
from omni.serve.decoders import Decoded
from omni.serve.protocol import ApiError, ChatRequest, StopText

WAITING = 32  # requests that may wait
MAX_NEW_TOKENS = 1024  # of an answer


class Piece(NamedTuple):
    """A piece of an answer; the last one says why it ended."""

    text: str  # often empty: a token may be a part of a character
    given: dict[str, int]  # tokens of the prompt: text, image, audio
    answered: int  # tokens of the answer so far
    seconds: float  # since its computation began
    finish: str | None = None  # "stop" or "length"


class Answer:
    """A request's answer, as it is computed."""

    def __init__(self, request: ChatRequest, media: dict[str, torch.Tensor]):
        self.request, self.media = request, media
        self.pieces: queue.SimpleQueue = queue.SimpleQueue()  # Pieces, or an ApiError as the last
        self.cancelled = False

    def next(self, timeout: float) -> Piece | None:
        """The next piece; None if there is none yet. ApiError if the request failed."""
        try:
            piece = self.pieces.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(piece, ApiError):
            raise piece
        return piece


class Engine:
    """The thread that computes, and the requests that wait for it."""

    def __init__(self, system: OmniModel):
        self.system = system
        self.default_length = min(system.longest_answer, MAX_NEW_TOKENS)
        self.waiting: deque[Answer] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.thread.start()

    def submit(self, request: ChatRequest, media: dict[str, torch.Tensor]) -> Answer:
        """Put a request at the end of the queue. ApiError if the queue is full."""
        answer = Answer(request, media)
        with self.changed:
            if len(self.waiting) >= WAITING:
                raise ApiError(503, f"{WAITING} requests are waiting already; try again", code="overloaded")
            self.waiting.append(answer)
            self.changed.notify()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer; one that waits loses its place."""
        answer.cancelled = True
        with self.changed:
            if answer in self.waiting:
                self.waiting.remove(answer)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    for answer in self.waiting:
                        answer.pieces.put(ApiError(503, "the server is stopping"))
                    return
                answer = self.waiting.popleft()
            try:
                self._compute(answer)
            except ApiError as err:
                answer.pieces.put(err)
            except UserError as err:
                code = "context_length_exceeded" if "too long" in str(err) else None
                answer.pieces.put(ApiError(400, str(err), "messages", code))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                answer.pieces.put(ApiError(503, "not enough memory for this conversation; shorten it"))
            except Exception:  # a fault of ours, which must not end the server
                traceback.print_exc(file=sys.stderr)
                answer.pieces.put(ApiError(500, "the answer failed; the server's terminal says why"))

    def _compute(self, answer: Answer) -> None:
        request, begun = answer.request, time.monotonic()
        prompt = self.system.prompt(request.messages, lambda *_, **__: Decoded(answer.media))
        given, answered = _token_counts(prompt), 0
        limit = min(request.max_new_tokens or self.default_length, MAX_NEW_TOKENS)
        stop = StopText(request.stop)

        def send(text: str, finish: str | None = None) -> None:
            answer.pieces.put(Piece(text, given, answered, time.monotonic() - begun, finish))

        for piece in self.system.answer(prompt, limit, request.temperature, request.top_p, request.seed):
            if self.closed:
                raise ApiError(503, "the server is stopping")
            if answer.cancelled:
                return
            answered += 1
            text = stop.add(piece)
            if stop.found:
                send(text, "stop")
                return
            send(text)
        answered -= 1  # the last piece is what was left, not a token
        send(stop.held, "length" if answered == limit else "stop")


def _token_counts(prompt: Batch) -> dict[str, int]:
    """Tokens of a prompt by what they stand for."""
    image, audio = len(prompt.image_tokens), len(prompt.audio_tokens)
    return {"text": int(prompt.layout.cu_seqlens[1]) - image - audio, "image": image, "audio": audio}
