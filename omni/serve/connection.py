"""Reads the requests of a connection within limits of size and time, and notices when its client has gone.

`http.server` limits neither: a header may have megabytes, and a client that sends a byte a second keeps its
thread for ever.
"""

import http.server
import io
import json
import socket
import time
from http import HTTPStatus

from omni.serve.protocol import ApiError

MAX_HEAD = 16_384  # bytes of the request line and all headers
MAX_BODY = 32_000_000
HEAD_SECONDS, BODY_SECONDS, SEND_SECONDS = 10.0, 60.0, 15.0  # for the whole head, the whole body, each write
LINGER_SECONDS = 2.0  # how long what a refused client still sends is thrown away, so that it reads the answer
BLOCK = 65_536


class TimedSocket(io.RawIOBase):
    """A socket's input; TimeoutError if a read does not end before the deadline."""

    def __init__(self, connection: socket.socket):
        self.connection, self.deadline, self.received = connection, 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        count = self.connection.recv_into(buffer)
        self.received += count
        return count


class LimitedHandler(http.server.BaseHTTPRequestHandler):
    """Handles the requests of one connection. Subclasses define do_GET and do_POST; these may raise ApiError.

    `server` has `reading(connection, bool)`, told when a client is waited for, and `buffered(connection, n)`,
    told of each n bytes of a body that are kept (negative when they are dropped).
    """

    protocol_version = default_request_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.input = TimedSocket(self.connection)
        self.rfile = io.BufferedReader(self.input, BLOCK)

    def version_string(self) -> str:
        return "omni"

    def log_message(self, *_) -> None:
        """Nothing: a request's path may hold anything, and errors are told to the client."""

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.started = self.expects = False
        try:
            if not self._read_head():
                return
            getattr(self, "do_" + self.command, self.do_other)()
        except ApiError as err:
            self.close_connection = self.close_connection or self.unread > 0
            self.send_problem(err)
            self._linger()
        except (TimeoutError, OSError):  # too slow, or gone
            self.close_connection = True

    def _read_head(self) -> bool:
        """Read the request line and the headers. False if the client has gone or sent nothing."""
        self.server.reading(self.connection, True)
        self.unread = 1  # bytes of the request that are still to come; 1 until the headers say how many
        self.input.deadline = time.monotonic() + HEAD_SECONDS
        self.command, self.request_version, self.requestline = "", self.protocol_version, ""
        head, size, received = [], 0, self.input.received
        try:
            while not head or head[-1].strip(b"\r\n"):
                head.append(self.rfile.readline(MAX_HEAD + 1))
                size += len(head[-1])
                if size > MAX_HEAD or not head[-1].endswith(b"\n"):
                    break
        except TimeoutError:
            if self.input.received == received:  # the client only kept the connection
                return False
            raise ApiError(408, "the request took too long") from None
        finally:
            self.server.reading(self.connection, False)
        if not head[0]:
            return False
        if size > MAX_HEAD:
            raise ApiError(431, f"the headers have more than {MAX_HEAD} bytes")
        if not head[-1].endswith(b"\n"):
            return False
        self.raw_requestline, body = head[0], self.rfile
        self.rfile = io.BytesIO(b"".join(head[1:]))
        try:
            if not self.parse_request():  # a line without words
                return False
        finally:
            self.rfile = body
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            self.request_version = self.protocol_version
            raise ApiError(505, "HTTP/1.1, please")
        lengths, hosts = self.headers.get_all("Content-Length", []), self.headers.get_all("Host", [])
        if len(lengths) > 1 or len(hosts) > 1 or "Transfer-Encoding" in self.headers:
            raise ApiError(400, "one Content-Length and one Host, and no Transfer-Encoding, please")
        if lengths and not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 16):
            raise ApiError(400, "Content-Length is not a number")
        self.unread = int(lengths[0]) if lengths else 0
        return True

    def handle_expect_100(self) -> bool:
        self.expects = True  # answered when the body is wanted
        return True

    def do_other(self) -> None:
        raise ApiError(405, "only GET and POST, please")

    def read_body(self) -> bytes:
        """The body. ApiError if it is too large or too slow."""
        if "Content-Length" not in self.headers:
            raise ApiError(411, "a body needs a Content-Length")
        if self.unread > MAX_BODY:
            raise ApiError(413, f"the body has more than {MAX_BODY // 1_000_000} MB")
        if self.expects:
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        body = bytearray()
        self.server.reading(self.connection, True)
        self.input.deadline = time.monotonic() + BODY_SECONDS
        try:
            while self.unread:
                block = self.rfile.read1(min(self.unread, BLOCK))
                if not block:
                    raise ConnectionResetError
                self.server.buffered(self.connection, len(block))
                body += block
                self.unread -= len(block)
        except TimeoutError:
            raise ApiError(408, "the body took too long") from None
        except BaseException:
            self.server.buffered(self.connection, -len(body))
            raise
        finally:
            self.server.reading(self.connection, False)
        return bytes(body)

    def client_has_gone(self) -> bool:
        """Whether the client closed its end, or at least its sending half."""
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, status: int, kind: str, content: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """A whole response."""
        self.begin(status, kind, (*headers, ("Content-Length", str(len(content)))))
        self.write(content)

    def send_json(self, value, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send(status, "application/json", json.dumps(value).encode(), headers)

    def send_problem(self, err: ApiError) -> None:
        """The error as a response, unless one has begun: then the connection is closed in its midst."""
        if self.started:
            self.close_connection = True
            return
        headers = {401: (("WWW-Authenticate", "Bearer"),), 503: (("Retry-After", "1"),)}
        self.send_json(err.body(), err.status, headers.get(err.status, ()))

    def send_error(self, code, message=None, explain=None) -> None:
        """What `http.server` itself refuses."""
        raise ApiError(int(code), message or HTTPStatus(code).phrase)

    def begin(self, status: int, kind: str, headers: tuple[tuple[str, str], ...]) -> None:
        """Status and headers; the subclass adds its own in `end_headers`."""
        self.connection.settimeout(SEND_SECONDS)
        self.started = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def write(self, content: bytes) -> None:
        self.connection.settimeout(SEND_SECONDS)
        self.wfile.write(content)

    def _linger(self) -> None:
        """Throw away what a refused client still sends: closing at once would destroy the answer."""
        if not self.unread:
            return
        self.connection.shutdown(socket.SHUT_WR)
        self.input.deadline = time.monotonic() + LINGER_SECONDS
        while self.rfile.read1(BLOCK):
            pass
