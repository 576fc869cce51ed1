"""The server: its routes, who may ask, and how many connections there may be."""

import contextlib
import hmac
import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
import time
import uuid
from importlib.resources import files
from urllib.parse import urlsplit

from omni.base.errors import MediaError
from omni.chat import OmniModel
from omni.serve import protocol
from omni.serve.about import About, read_medium
from omni.serve.connection import LimitedHandler
from omni.serve.decoders import Decoders
from omni.serve.engine import MAX_NEW_TOKENS, Engine, Piece
from omni.serve.protocol import ApiError

MAX_CONNECTIONS = 64
MAX_BUFFERED = 128_000_000  # bytes of all bodies together that are being read or parsed
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
POLL_SECONDS = 0.25  # how often a waiting request looks whether its client is still there
PAGE = {"/": ("index.html", "text/html; charset=utf-8"),
        "/style.css": ("style.css", "text/css; charset=utf-8")}
PAGE |= {f"/{name}": (name, "text/javascript; charset=utf-8")
         for name in ("app.js", "server.js", "view.js", "sound.js", "camera.js", "recorder.js")}
HEADERS = {  # of every response
    "Content-Security-Policy":
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()"}


class Server(socketserver.ThreadingTCPServer):
    """Answers on `host` and `port`, each connection in a thread of its own, at most MAX_CONNECTIONS."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, system: OmniModel, facts: About, decoders: Decoders,
                 token: str | None = None):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.hosts, self.token = LOOPBACK | {host.lower()}, token
        self.page = {path: (kind, files("omni.serve").joinpath("page", name).read_bytes())
                     for path, (name, kind) in PAGE.items()}
        self.system, self.facts, self.decoders = system, facts, decoders
        self.lock, self.buffered_bytes = threading.Lock(), 0
        self.open: dict[socket.socket, float | None] = {}  # since when its client is waited for
        super().__init__((host, port), Handler)
        self.engine = Engine(system)

    def process_request(self, request, client_address) -> None:
        if not self._admit(request):
            body = json.dumps(ApiError(503, "too many connections; try again", code="overloaded").body())
            with contextlib.suppress(OSError):
                request.settimeout(1)
                request.sendall(f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
                                "Content-Type: application/json\r\n"
                                f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def _admit(self, connection: socket.socket) -> bool:
        with self.lock:
            if len(self.open) >= MAX_CONNECTIONS and not self._drop_slowest():
                return False
            self.open[connection] = time.monotonic()
            return True

    def _drop_slowest(self, but: socket.socket | None = None) -> bool:
        """End the connection whose client has let us wait the longest; False if none has for a second."""
        waited = [(since, c) for c, since in self.open.items() if since is not None and c is not but]
        since, slowest = min(waited, key=lambda pair: pair[0], default=(time.monotonic(), None))
        if slowest is None or time.monotonic() - since < 1:
            return False
        del self.open[slowest]
        with contextlib.suppress(OSError):
            slowest.shutdown(socket.SHUT_RDWR)  # its thread finds the end and closes it
        return True

    def shutdown_request(self, request) -> None:
        with self.lock:
            self.open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no error; others are printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def reading(self, connection: socket.socket, waited_for: bool) -> None:
        with self.lock:
            if connection in self.open:
                self.open[connection] = time.monotonic() if waited_for else None

    def buffered(self, connection: socket.socket, count: int) -> None:
        """Count the bytes of bodies in memory. ApiError if they are too many and no slow client can go."""
        with self.lock:
            full = count > 0 and self.buffered_bytes + count > MAX_BUFFERED
            if full and not self._drop_slowest(but=connection):
                raise ApiError(503, "too much is being sent at once; try again", code="overloaded")
            self.buffered_bytes += count

    def close(self) -> None:
        """Stop computing and listening. Call it after `serve_forever` has returned."""
        self.engine.close()
        self.server_close()


class Handler(LimitedHandler):
    """The routes."""

    server: Server

    def end_headers(self) -> None:
        for name, value in HEADERS.items() if self.started else ():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        self.close_connection = self.close_connection or self.unread > 0
        path = self.path.partition("?")[0]
        self._check_sender(path)
        if path in self.server.page:
            self.send(200, *self.server.page[path])
            return
        self._check_token()
        facts = self.server.facts
        sample = re.fullmatch(r"/samples/(\d{1,6})/(\d{1,3})", path, re.ASCII)
        if path == "/v1/models":
            self.send_json(protocol.models(facts.name))
        elif path == f"/v1/models/{facts.name}":
            self.send_json(protocol.model(facts.name))
        elif path == "/about":
            self.send_json({"model": facts.name, "parts": facts.parts, "figures": facts.figures,
                            "samples": facts.samples, "max_new_tokens": MAX_NEW_TOKENS,
                            "default_length": self.server.engine.default_length,
                            "max_length": self.server.system.config.max_length})
        elif sample is not None:
            self._send_sample(*map(int, sample.groups()))
        else:
            raise ApiError(404, "there is no such address")

    def do_POST(self) -> None:
        self._check_sender(self.path)
        self._check_token()
        if self.path != "/v1/chat/completions":
            raise ApiError(404, "there is no such address")
        if self.headers.get_content_type() != "application/json":
            raise ApiError(415, "the Content-Type must be application/json")
        body = self.read_body()
        size = len(body)
        try:
            request = protocol.parse(body, self.server.facts.name)
            del body
            media = self.server.decoders.read(request.media, self.server.system.reader())
            request.media = []
        finally:
            self.server.buffered(self.connection, -size)
        answer = self.server.engine.submit(request, media)
        try:
            self._answer(answer, uuid.uuid4().hex)
        finally:
            self.server.engine.cancel(answer)

    def _check_sender(self, path: str) -> None:
        """403 for a page of another origin, and for a name that was made to point here (DNS rebinding)."""
        host = self.headers.get("Host", "")
        if not self._is_own(host):
            raise ApiError(403, "the Host header names another server")
        origin = self.headers.get("Origin")
        if origin is not None and (urlsplit(origin).scheme not in ("http", "https")
                                   or origin.partition("://")[2].lower() != host.lower()):
            raise ApiError(403, "pages of another origin may not ask here")
        site, mode = self.headers.get("Sec-Fetch-Site"), self.headers.get("Sec-Fetch-Mode")
        followed_link = path == "/" and mode == "navigate"
        if site in ("cross-site", "same-site") and not followed_link:
            raise ApiError(403, "pages of another origin may not ask here")

    def _is_own(self, host: str) -> bool:
        """Whether a Host header is an address or a name of this server. An address can't be rebound."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.server.hosts:
                return True
            ipaddress.ip_address(name)
            return self.server.token is not None
        except ValueError:
            return False

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        wanted = self.server.token
        if wanted is not None and not hmac.compare_digest(given, f"Bearer {wanted}".encode()):
            raise ApiError(401, "this server wants its token: Authorization: Bearer TOKEN",
                           code="invalid_api_key")

    def _send_sample(self, number: int, index: int) -> None:
        """A medium of a held-out sample, by its place in the server's own list."""
        paths = self.server.facts.paths[number] if number < len(self.server.facts.paths) else []
        if index >= len(paths):
            raise ApiError(404, "there is no such sample")
        try:
            self.send(200, *read_medium(paths[index]))
        except (MediaError, OSError):
            raise ApiError(404, "the sample's medium is no longer there") from None

    def _answer(self, answer, number: str) -> None:
        """Send the answer, whole or as it is computed, while the client is there."""
        head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": self.server.facts.name,
                "system_fingerprint": None}
        asked, first, text, streaming = time.monotonic(), None, [], answer.request.stream
        while True:
            if self.client_has_gone():
                raise ConnectionResetError
            piece: Piece | None = answer.next(POLL_SECONDS)
            if piece is None:
                continue
            if first is None:
                first = piece.seconds
                queued = time.monotonic() - asked - first
                if streaming:
                    self.close_connection = True  # the end of the connection ends the stream
                    self.begin(200, "text/event-stream; charset=utf-8", ())
                    self._event(protocol.chunk(head, {"role": "assistant", "content": ""}))
            if streaming and piece.text:
                self._event(protocol.chunk(head, {"content": piece.text}))
            text.append(piece.text)
            if piece.finish is not None:
                break
        counts = protocol.usage(piece.given, piece.answered)
        speed = (piece.answered - 1) / max(piece.seconds - first, 1e-6) if piece.answered > 1 else None
        timings = {"queued_s": round(max(queued, 0), 4), "first_token_s": round(first, 4),
                   "tokens_per_s": speed and round(speed, 1)}
        if not streaming:
            self.send_json(protocol.completion(head, "".join(text), piece.finish, usage=counts,
                                               timings=timings))
            return
        self._event(protocol.chunk(head, {}, piece.finish))
        if answer.request.include_usage:
            self._event(protocol.chunk(head, None, usage=counts, timings=timings))
        self.write(b"data: [DONE]\n\n")

    def _event(self, value: dict) -> None:
        self.write(b"data: " + json.dumps(value).encode() + b"\n\n")
