"""A server in this process for tests, and clients that speak to it byte by byte."""

import base64
import contextlib
import dataclasses
import json
import socket
import threading
import time
from pathlib import Path

from toy import Toy, briefly_trained

from omni import OmniModel
from omni.base import checkpoint
from omni.base.config import SFTConfig, build
from omni.serve.about import About
from omni.serve.decoders import Decoders
from omni.serve.server import Server

MODEL = "toy"


def saved_system(toy: Toy, folder: Path) -> str:
    """A briefly trained system in a file."""
    config = build(SFTConfig, {**toy.config, "max_new_tokens": 12}, "toy")
    content = briefly_trained(toy.model(), toy).content()
    checkpoint.save(folder / "omni_final.pt", "omni", {**content, "config": dataclasses.asdict(config),
                                                       "metrics": {}})
    return str(folder / "omni_final.pt")


@contextlib.contextmanager
def serving(system: OmniModel, facts: About | None = None, token: str | None = None):
    """A running server."""
    decoders = Decoders()
    server = Server("127.0.0.1", 0, system, facts or About(MODEL), decoders, token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.close()
        decoders.close()


class Slow:
    """Stands in for a system: an answer of as many pieces as asked for, each taking a while."""

    def __init__(self, system: OmniModel, seconds: float = 0.01, piece: str = "x"):
        self.system, self.config, self.seconds, self.piece = system, system.config, seconds, piece
        self.longest_answer = system.longest_answer
        self.begun: list[str] = []  # the last text of each prompt, in the order of their computation
        self.tokens = 0

    def reader(self):
        return self.system.reader()

    def prompt(self, messages: list[dict], reader):
        self.begun.append(messages[-1]["content"][-1]["text"])
        return self.system.prompt(messages, reader)

    def answer(self, prompt, length: int, *_):
        for _number in range(length):
            time.sleep(self.seconds)
            self.tokens += 1
            yield self.piece
        yield ""


def connect(server: Server) -> socket.socket:
    return socket.create_connection(server.server_address[:2], timeout=30)


def head(server: Server, line: str = "GET / HTTP/1.1", **headers: str) -> bytes:
    """A request's first line and headers; `Host=None` leaves that one out."""
    port = server.server_address[1]
    fields = {"Host": f"127.0.0.1:{port}", **headers}
    lines = [line, *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()
                     if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def raw(server: Server, request: bytes) -> tuple[int, bytes]:
    """Send bytes; the status and the body of the first response. Status 0 if there is none."""
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # refused before all was sent
            connection.sendall(request)
        return response(connection)


def response(connection: socket.socket) -> tuple[int, bytes]:
    with connection.makefile("rb") as f:
        try:
            status = f.readline().split(b" ")
            fields = {}
            while (line := f.readline().strip()):
                name, _, value = line.partition(b":")
                fields[name.lower()] = value.strip()
            length = fields.get(b"content-length")
            body = f.read() if length is None else f.read(int(length))
        except ConnectionError:
            return 0, b""
    return (int(status[1]) if len(status) > 1 else 0), body


def post(server: Server, body, **headers: str) -> tuple[int, dict]:
    """A chat request; status and answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content_Type": "application/json", "Content_Length": str(len(content)), **headers}
    status, answer = raw(server, head(server, "POST /v1/chat/completions HTTP/1.1", **fields) + content)
    return status, json.loads(answer or b"{}")


def question(*parts, **options) -> dict:
    """A request with one question of texts and parts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"messages": [{"role": "user", "content": parts}], **options}


def picture(content: bytes | str, kind: str = "png") -> dict:
    content = Path(content).read_bytes() if isinstance(content, str) else content
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{encoded(content)}"}}


def clip(content: bytes | str, form: str = "wav") -> dict:
    content = Path(content).read_bytes() if isinstance(content, str) else content
    return {"type": "input_audio", "input_audio": {"data": encoded(content), "format": form}}


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def until(condition, seconds: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
