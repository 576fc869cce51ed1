"""Many clients at once: order, a full queue, clients that are slow or go away, a thousand requests."""

import concurrent.futures
import contextlib
import gc
import json
import os
import random
import threading
import time

import pytest
from serving import (
    Slow,
    clip,
    connect,
    head,
    picture,
    post,
    question,
    raw,
    response,
    saved_system,
    serving,
    until,
)

from omni import OmniModel
from omni.data.question import media_part
from omni.serve import connection, engine
from omni.serve import server as server_module

POST = "POST /v1/chat/completions HTTP/1.1"


@pytest.fixture(scope="module")
def system(toy, tmp_path_factory) -> OmniModel:
    return OmniModel.load(saved_system(toy, tmp_path_factory.mktemp("loaded")), device="cpu")


@pytest.fixture
def slow(system):
    """A server whose answers take 10 ms a token."""
    with serving(Slow(system)) as running:
        yield running


def begin(server, **options):
    """A connection on which a request was sent."""
    body = json.dumps({**question("hi"), **options}).encode()
    connected = connect(server)
    size = str(len(body))
    connected.sendall(head(server, POST, Content_Type="application/json", Content_Length=size) + body)
    return connected


def test_more_connections_than_there_may_be_get_a_503(slow, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    begun = [begin(slow, max_tokens=100) for _ in range(2)]
    until(lambda: len(slow.engine.waiting) == 1)
    status, answer = raw(slow, head(slow))
    assert status == 503 and json.loads(answer)["error"]["code"] == "overloaded"
    for connected in begun:
        assert response(connected)[0] == 200
        connected.close()


def test_requests_are_answered_in_their_order(slow):
    first = begin(slow, max_tokens=50)
    until(lambda: slow.system.begun)
    waiting = []
    for number in range(8):
        waiting.append(begin(slow, max_tokens=2, messages=question(f"number {number}")["messages"]))
        until(lambda number=number: len(slow.engine.waiting) == number + 1)
    for connected in (first, *waiting):
        assert response(connected)[0] == 200
        connected.close()
    assert slow.system.begun == ["hi", *(f"number {number}" for number in range(8))]


def test_a_full_queue_is_a_503_that_says_to_try_again(slow, monkeypatch):
    monkeypatch.setattr(engine, "WAITING", 3)
    begun = [begin(slow, max_tokens=100)]
    until(lambda: slow.system.begun)
    begun += [begin(slow, max_tokens=1) for _ in range(3)]
    until(lambda: len(slow.engine.waiting) == 3)
    with begin(slow) as refused:
        status, answer = response(refused)
        assert status == 503 and json.loads(answer)["error"]["code"] == "overloaded"
    for connected in begun:
        assert response(connected)[0] == 200
        connected.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_answer_and_frees_its_place(slow, stream):
    gone = begin(slow, stream=stream, max_tokens=1000)
    until(lambda: slow.system.tokens > 3)
    waiting = begin(slow, max_tokens=1000)
    until(lambda: len(slow.engine.waiting) == 1)
    waiting.close()
    until(lambda: not slow.engine.waiting)
    gone.close()
    begun = time.monotonic()
    assert post(slow, question("next", max_tokens=1))[0] == 200
    assert time.monotonic() - begun < 3 and slow.system.tokens < 500
    assert slow.system.begun == ["hi", "next"]


def test_a_fault_of_the_system_is_a_500_and_the_next_request_works(slow, monkeypatch, capsys):
    monkeypatch.setattr(slow.system, "prompt", lambda *_: 1 / 0)
    status, answer = post(slow, question("hi"))
    assert status == 500 and answer["error"]["type"] == "server_error" and "Zero" not in str(answer)
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.undo()
    assert post(slow, question("hi", max_tokens=1))[0] == 200


def trickle(connected, content: bytes, ended: threading.Event) -> None:
    """Send a byte every tenth of a second."""
    with contextlib.suppress(OSError):
        for byte in content:
            connected.sendall(bytes([byte]))
            if ended.wait(0.1):
                return


def test_nobody_waits_for_clients_that_send_a_byte_at_a_time(slow, monkeypatch):
    """They hold every connection there may be, in their headers and in their bodies."""
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 8)
    ended, ask = threading.Event(), head(slow, POST, Content_Length="1000", Content_Type="application/json")
    held = [connect(slow) for _ in range(8)]
    for number, connected in enumerate(held):
        connected.sendall(ask if number % 2 else ask[:9])
        threading.Thread(target=trickle, args=(connected, b" " * 600, ended)).start()
    until(lambda: len(slow.open) == 8)
    time.sleep(1.1)  # from then on the slowest has to go
    for _ in range(8):
        begun = time.monotonic()
        assert post(slow, question("hi", max_tokens=1))[0] == 200
        assert time.monotonic() - begun < 1
    ended.set()
    for connected in held:
        connected.close()


def test_slow_headers_and_slow_bodies_end_at_their_deadline(slow, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.5)
    ask = head(slow, POST, Content_Length="1000", Content_Type="application/json")
    for start in (ask[:20], ask):
        with connect(slow) as connected:
            connected.sendall(start)
            ended = threading.Event()
            threading.Thread(target=trickle, args=(connected, b"a" * 100, ended)).start()
            begun = time.monotonic()
            assert response(connected)[0] == 408 and 0.3 < time.monotonic() - begun < 3
            ended.set()
    with connect(slow) as silent:  # an idle connection is closed without a word
        assert silent.recv(100) == b""
    until(lambda: not slow.open)


def test_a_client_that_does_not_read_its_answer_holds_nobody_up(system, monkeypatch):
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.5)
    with serving(Slow(system, 0.02, "x" * 200_000)) as server:
        stuck = begin(server, stream=True, max_tokens=1000)
        until(lambda: server.system.tokens > 3)
        begun = time.monotonic()
        assert post(server, question("next", max_tokens=1))[0] == 200
        assert time.monotonic() - begun < 10 and server.system.tokens < 500
        stuck.close()


def resident_mb() -> float:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def test_a_thousand_requests_of_which_a_third_are_bad(system, toy):
    """20 at once, beside clients that send a byte at a time and others that leave: nothing is lost."""
    data = toy.root / "data"
    pictures = [str(data / "image_text" / f"val_{i}.png") for i in range(4)]
    clips = [str(data / "audio_text" / f"val_{i}.wav") for i in (1, 2)]
    cases = []  # (request, status, the answer's text)
    for number, path in enumerate(pictures):
        own = question(media_part("<image>", path), "What color?")["messages"]
        cases.append((question(picture(path), "What color?", stream=number % 2 > 0), 200, system.chat(own)))
    for path in clips:
        own = question(media_part("<audio>", path), "Transcribe.")["messages"]
        cases.append((question(clip(path), "Transcribe."), 200, system.chat(own)))
    for a in range(6):
        own = question(f"What is {a} plus 2?")
        cases.append((own, 200, system.chat(own["messages"])))
    bad = [(b"{", 400), (question(), 400), (question(picture(b"no")), 400), (question(clip(b"RIFF")), 400),
           (question("x", temperature=9), 400), (question("x", model="other"), 404)]
    drawn, served, wrong = random.Random(0), [], []
    plan = [drawn.choice(bad) if number % 3 == 0 else drawn.choice(cases) for number in range(1000)]

    def ask(case) -> None:
        status, answer = post_any(server, case[0])
        got = (status, answer) if len(case) == 3 else (status,)
        served.append(status)
        if got != tuple(case[1:]):
            wrong.append((got, case[1:]))

    with serving(system) as server:
        ended = threading.Event()
        trickling = [connect(server) for _ in range(10)]
        for connected in trickling:
            threading.Thread(target=trickle, args=(connected, head(server), ended)).start()
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(ask, plan[:200]))
            gc.collect()
            memory, threads = resident_mb(), threading.active_count()
            for _ in range(8):
                begin(server, stream=True).close()  # and goes away
            list(pool.map(ask, plan[200:]))
            gc.collect()
            grown = resident_mb() - memory
        ended.set()
        for connected in trickling:
            connected.close()
        assert not wrong and len(served) == 1000, wrong
        assert grown < 30, f"{grown:.0f} MB more after 800 requests"
        until(lambda: not server.open and not server.engine.waiting)
        assert threading.active_count() <= threads and server.buffered_bytes == 0
        assert not os.listdir(server.decoders.folder.name)
        assert raw(server, head(server))[0] == 200


def post_any(server, body) -> tuple[int, str]:
    """Status and text of an answer, streamed or not."""
    if isinstance(body, dict) and body.get("stream"):
        content = json.dumps(body).encode()
        status, events = raw(server, head(server, POST, Connection="close", Content_Type="application/json",
                                          Content_Length=str(len(content))) + content)
        *lines, last = [line[6:] for line in events.decode().split("\n\n") if line.startswith("data: ")]
        assert last == "[DONE]"
        return status, "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)
    status, answer = post(server, body)
    return status, answer["choices"][0]["message"]["content"] if status == 200 else ""
