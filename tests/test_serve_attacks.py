"""Attacks on the server: by other pages, with paths, with damaged and huge requests, and by media."""

import io
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from serving import clip, encoded, head, picture, post, question, raw, saved_system, serving, until

from omni import OmniModel
from omni.base.config import VisionArch
from omni.data.media_reader import MediaReader
from omni.serve import connection, decoders, protocol
from omni.serve.decoders import Decoders
from omni.serve.protocol import ApiError, Medium

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def system(toy, tmp_path_factory) -> OmniModel:
    return OmniModel.load(saved_system(toy, tmp_path_factory.mktemp("attacked")), device="cpu")


@pytest.fixture(scope="module")
def server(system):
    with serving(system) as running:
        yield running


def get(server, path: str = "/v1/models", **headers) -> int:
    return raw(server, head(server, f"GET {path} HTTP/1.1", **headers))[0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", None,
                                  "[::1", "localhost.evil.example", "x@evil", "192.0.2.1", "::1 e", "\xe9"])
def test_a_rebound_name_gets_403(server, host):
    assert get(server, "/", Host=host) == get(server, Host=host) == 403
    assert post(server, question("hi"), Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9000", "[::1]:8000"])
def test_this_machines_own_names_are_served(server, host):
    assert get(server, "/", Host=host) == get(server, Host=host) == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://", "http://",
                                    "http://127.0.0.1", "evil", "", "https://127.0.0.1:1"])
def test_a_page_elsewhere_gets_403(server, origin):
    assert get(server, Origin=origin) == post(server, question("hi"), Origin=origin)[0] == 403


def test_its_own_page_is_served_and_links_to_it_work(server):
    own = f"http://127.0.0.1:{server.server_address[1]}"
    assert get(server, Origin=own) == post(server, question("hi"), Origin=own)[0] == 200
    for site in ("cross-site", "same-site"):
        assert get(server, "/about", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors") == 403
        assert get(server, "/app.js", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate") == 403
        assert get(server, "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate") == 200
    assert get(server, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors") == 200


def test_a_form_of_another_page_can_not_ask(server):
    """The types that a page may send without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        assert post(server, question("hi"), Content_Type=kind)[0] == 415
    status, body = raw(server, head(server, "OPTIONS /v1/chat/completions HTTP/1.1"))
    assert status == 405 and b"Access-Control" not in body


def test_every_response_has_the_security_headers(server):
    for line in ("GET / HTTP/1.1", "GET /about HTTP/1.1", "GET /no HTTP/1.1", "PUT / HTTP/1.1", "BAD"):
        with socket.create_connection(server.server_address[:2], timeout=20) as connected:
            connected.sendall(head(server, line, Connection="close"))
            text = connected.makefile("rb").read()
        for name in (b"Content-Security-Policy: default-src 'none'", b"X-Content-Type-Options: nosniff",
                     b"Cross-Origin-Resource-Policy: same-origin", b"Cache-Control: no-store"):
            assert name in text, line
        assert b"Python" not in text and b"unsafe" not in text and b"Access-Control" not in text


PATHS = ["/etc/hostname", "file:///etc/hostname", "../../etc/hostname", "http://127.0.0.1:1/x.png", "//a/b",
         "/etc/hostname@0+5/a.png", "data:image/png,/etc/hostname", "data:;base64,/etc/hostname", "\0",
         "~/.ssh/id"]


def test_no_path_of_a_request_is_opened(server):
    """Whatever the process opens is recorded while paths arrive wherever a request can hold one."""
    opened, active = [], True

    def note(event: str, arguments: tuple) -> None:
        if active and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    for path in PATHS:
        for part in ({"type": "image_url", "image_url": {"url": path}},
                     {"type": "image_url", "image_url": path},
                     {"type": "image", "image": path}, {"type": "audio", "audio": path},
                     {"type": "image", "path": path}, {"type": "audio_url", "audio_url": {"url": path}},
                     {"type": "input_audio", "input_audio": {"data": path, "format": path}},
                     {"type": "file", "file": {"file_id": path}}):
            status, answer = post(server, question(part, "x"))
            assert status == 400 and answer["error"]["type"] == "invalid_request_error", (part, answer)
        for body in ({**question("<image>"), "images": [path]}, {**question("x"), "model": path},
                     {"messages": [{"role": "user", "content": "x", "images": [path]}]}):
            assert post(server, body)[0] in (400, 404)
        assert post(server, question(path))[0] == 200  # as a text it is a text
    for path in ("/../../../../etc/hostname", "/%2e%2e/%2e%2e/etc/hostname", "//etc/hostname", "/page/app.js",
                 "/app.js/../../server.py", "/style.css%00", "/samples/0/0%2f..", "/samples/../0/0",
                 "/index.html", "http://127.0.0.1/etc/hostname", "/..\\..\\x", "*"):
        assert get(server, path) == 404, path
    active = False
    assert not opened, opened
    status, _ = post(server, question(picture(encoded_picture("PNG", (4, 4)))))
    assert status == 200


def test_a_token_is_asked_for_and_compared_whole(system):
    with serving(system, token=TOKEN) as server:
        for given in (None, "", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "\xe9"):
            for line in ("GET /v1/models", "GET /about", "GET /samples/0/0", "GET /nothing"):
                status, body = raw(server, head(server, f"{line} HTTP/1.1", Authorization=given))
                assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"
            assert post(server, question("hi"), Authorization=given)[0] == 401
        assert get(server, "/", Authorization=None) == 200  # the page asks for the token
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert get(server, **good) == post(server, question("hi"), **good)[0] == 200
        assert get(server, Host="192.0.2.1:8000", **good) == 200  # an address can't be rebound
        assert get(server, Host="evil.example", **good) == 403


def test_the_size_of_a_request_is_limited(server, monkeypatch):
    assert raw(server, head(server, X="a" * 20_000))[0] == 431
    assert raw(server, head(server, "GET /" + "a" * 20_000 + " HTTP/1.1"))[0] == 431
    assert raw(server, head(server, **{f"X{i}": "a" for i in range(2000)}))[0] == 431
    assert raw(server, head(server, **{f"X{i}": "a" for i in range(150)}))[0] == 431
    with socket.create_connection(server.server_address[:2], timeout=20) as endless:
        endless.sendall(head(server)[:-2] + b"X: a\r\n" * 3000)  # and no end
        assert endless.recv(100).startswith(b"HTTP/1.1 431")
    address = f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions"
    body, kind = b"x" * (connection.MAX_BODY + 1), {"Content-Type": "application/json"}
    huge = urllib.request.Request(address, body, kind)
    with pytest.raises(urllib.error.HTTPError, match="413"):  # the answer is read although the body was not
        urllib.request.urlopen(huge, timeout=20)
    monkeypatch.setattr(protocol, "MAX_MEDIUM", 1000)
    assert post(server, question(picture(b"x" * 1200)))[0] == 413
    status, answer = post(server, question(*[picture(b"")] * 33))
    assert status == 400 and "32" in answer["error"]["message"]
    assert server.buffered_bytes == 0


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"7", b"null", b'{"messages": NaN}', b"\xff\xfe", b'"' + b"x" * 100, b"[" * 10_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"[" + b"{}," * 30_000 + b"{}]", b"[" + b"1," * 300_000 + b"1]",
    b'{"seed": ' + b"9" * 10_000 + b"}", b'{"temperature": 1e999}', b'{"messages": [[]]}', b"\0" * 50])
def test_a_body_that_is_no_request_is_a_400(server, body):
    status, answer = post(server, body)
    assert status == 400 and answer["error"]["message"]


def test_small_values_that_would_fill_the_memory_are_not_parsed(server):
    for body in (b'{"messages": [' + b"{}," * 30_000 + b"{}]}", b'{"messages": [' + b"1," * 300_000 + b"1]}"):
        status, answer = post(server, body)
        assert status == 400 and "too many values" in answer["error"]["message"]


def test_damaged_http_is_refused_or_dropped(server):
    long = head(server, "POST /v1/chat/completions HTTP/1.1", Content_Type="application/json")[:-2]
    cases = {b"\0\1\2\r\n\r\n": 400, b"GET\r\n\r\n": 400, b"GET / HTTP/0.9\r\n\r\n": 505,
             b"\r\n\r\n": 0,
             b"\x16\x03\x01\x02\x00\x01\r\n\r\n": 400,
             b"GET / HTTP/9.9\r\n\r\n": 505, b"GET /\r\n\r\n": 403, b"GET / HTTP/1.1\r\nHost": 0,
             long + b"\r\n": 411, long + b"Content-Length: -1\r\n\r\n": 400,
             long + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!": 400,
             long + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 400, long + b"Host: x\r\n\r\n": 400,
             long + b"Content-Length: 99\r\n\r\nshort": 0}
    for request, wanted in cases.items():
        with socket.create_connection(server.server_address[:2], timeout=20) as connected:
            connected.sendall(request)
            connected.shutdown(1)
            status = (connected.makefile("rb").readline().split() + [b"", b"0"])[1]
        assert int(status) == wanted, request
    until(lambda: server.buffered_bytes == 0 and not server.open)


def png(width: int, height: int) -> bytes:
    """A picture that says it is that large."""
    whole = bytearray(encoded_picture("PNG", (4, 4)))
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def encoded_picture(form: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, form)
    return out.getvalue()


def sound(seconds: float, **options) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(int(16_000 * seconds)), 16_000, **{"format": "WAV", **options})
    return out.getvalue()


@pytest.mark.parametrize("part, word", [
    (picture(png(60_000, 60_000)), "too large"), (picture(png(9_000, 9_000)), "40 megapixels"),
    (picture(b""), "image 1"), (picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image"),
    (picture(b"%PDF-1.4 /etc/hostname"), "not an image"),
    (picture(b"\x80\x04cos\nsystem\n."), "not an image"),
    (picture(encoded_picture("PNG", (400, 400))[:300]), "image 1"), (clip(b""), "audio 1"),
    (clip(sound(31)), "30 s"), (clip(sound(0.01)), "shorter"), (clip(sound(1)[:-500]), "cut short"),
    (clip(sound(1, subtype="IMA_ADPCM")), "ADPCM"), (clip(encoded_picture("PNG", (4, 4))), "sound")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_media_that_can_not_be_used_are_a_400(server, part, word):
    status, answer = post(server, question(part, "What?"))
    assert (status, answer["error"]["code"]) == (400, "invalid_media") and word in answer["error"]["message"]
    assert "omni-serve" not in answer["error"]["message"] and not os.listdir(server.decoders.folder.name)


def test_media_in_the_formats_of_browsers_and_phones(server):
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert post(server, question(picture(encoded_picture(form, (30, 20)), form), "What?"))[0] == 200
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        assert post(server, question(clip(sound(1, format=form), form), "What?"))[0] == 200, form


class Hanging(MediaReader):
    """Reads pictures, but never clips."""

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        time.sleep(60)


def test_a_decoder_that_hangs_or_dies_ends_its_request_alone(monkeypatch):
    monkeypatch.setattr(decoders, "TIMEOUT", 0.5)
    shown, heard = Medium("image 1", "pixels", encoded_picture("PNG", (9, 9))), Medium("audio 1", "mel", b"x")
    pool, arch = Decoders(), VisionArch(image_size=32)
    try:
        begun = time.monotonic()
        with pytest.raises(ApiError, match="audio 1: decoding it took longer"):
            pool.read([shown, heard, heard], Hanging(arch, None))
        assert time.monotonic() - begun < 8
        for _round in range(4):
            assert pool.read([shown], MediaReader(arch, None))["image 1"].shape == (3, 32, 32)
            for worker in pool.workers:
                worker.process.kill()
                worker.process.join()
        assert os.stat(pool.folder.name).st_mode & 0o777 == 0o700 and not os.listdir(pool.folder.name)
    finally:
        pool.close()
    assert not os.path.exists(pool.folder.name)


def test_base64_that_is_none_is_a_400(server):
    for payload in ("%%%", "abc", "a" * 5, "YQ==\n", "é"):
        part = {"type": "input_audio", "input_audio": {"data": payload, "format": "wav"}}
        assert post(server, question(part))[0] == 400
    assert encoded(b"a") == "YQ=="
