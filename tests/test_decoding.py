"""Several decoder processes give the bits and the order of one, and one that fails disturbs no other."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from conftest import ROOT

from omni.base import machine
from omni.base.config import AudioArch, VisionArch
from omni.base.errors import MediaError, UserError
from omni.data import decoding
from omni.data.decoding import Decoder
from omni.data.media_reader import MediaReader

ARCHS = VisionArch(image_size=32), AudioArch()


@pytest.fixture(autouse=True)
def a_child_for_each_medium(monkeypatch):
    monkeypatch.setattr(decoding, "MEDIA_PER_CHILD", {"fork": 1, "spawn": 1})


@pytest.fixture
def requests(toy) -> list[decoding.Request]:
    images = [path for s in toy.samples("image_text") for path in s.images]
    clips = [path for s in toy.samples("audio_text") for path in s.audios]
    return [("pixels", path, take) for path in images for take in range(3)] + [("mel", path, 0)
                                                                               for path in clips]


class Odd(MediaReader):
    """Hangs, crashes or sleeps on images whose name says so."""

    def pixels(self, path, take=0):
        name = os.path.basename(path)
        if name.startswith("hang"):
            time.sleep(600)
        if name.startswith("crash"):
            os._exit(3)
        if name.startswith("pid"):
            return torch.tensor([os.getpid()])
        return torch.tensor([float(name)])


def test_the_number_of_children_follows_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert Decoder(None, 20, "auto").workers == 12
    assert [Decoder(None, 20, workers).workers for workers in (0, 1, 5)] == [1, 1, 5]
    monkeypatch.setattr(machine, "can_fork", lambda: False)
    assert Decoder(None, 20, "auto").workers == machine.SPAWNED
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Decoder(None, 20, "auto").workers == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert Decoder(None, 20, "auto").workers == 1


@pytest.mark.parametrize("fork, workers", [(True, 1), (True, 2), (True, 5), (True, 999), (False, 2)])
def test_any_number_of_children_gives_the_bits_and_the_order_of_one(requests, monkeypatch, fork, workers):
    monkeypatch.setattr(machine, "can_fork", lambda: fork)
    reader = MediaReader(*ARCHS)
    wanted = [getattr(reader, method)(path, take) for method, path, take in requests]
    decoder = Decoder(MediaReader(*ARCHS), 20, workers)
    for _ in range(2):
        got = list(decoder.read(requests))
        assert len(got) == len(wanted) and all(map(torch.equal, got, wanted))
    assert decoder.frames == {path: len(mel) for (method, path, _), mel in zip(requests, wanted, strict=True)
                              if method == "mel"}
    assert list(decoder.read([])) == []


def test_few_media_take_few_children(monkeypatch):
    monkeypatch.setitem(decoding.MEDIA_PER_CHILD, "fork", 16)
    for media, children in ((1, 1), (16, 1), (17, 2), (999, 4)):
        decoder = Decoder(Odd(*ARCHS), 20, 4)
        got = [int(x) for x in decoder.read([("pixels", f"pid{n}", 0) for n in range(media)])]
        assert len(set(got)) == children and len(got) == media


@pytest.mark.parametrize("fork, odd", [
    (True, {4: "hang", 11: "crash", 13: "crash too"}), (False, {2: "crash"})])
def test_a_child_that_hangs_or_crashes_does_not_disturb_the_others(monkeypatch, fork, odd):
    monkeypatch.setattr(machine, "can_fork", lambda: fork)
    names = [odd.get(n, str(n)) for n in range(30 if fork else 4)]
    begun = time.monotonic()
    requests = [("pixels", name, 0) for name in names]
    got = list(Decoder(Odd(*ARCHS), 0.6 if fork else 20, 3 if fork else 2).read(requests))
    for name, medium in zip(names, got, strict=True):
        if name.isdigit():
            assert medium.item() == float(name)
        else:
            assert isinstance(medium, MediaError)
            assert ("longer than 0.6 s" if name == "hang" else "crashed") in str(medium)
    assert not fork or time.monotonic() - begun < 15


def test_the_start_of_a_child_is_not_the_time_of_its_first_medium(monkeypatch):
    monkeypatch.setattr(machine, "limit_memory", lambda _: time.sleep(1.5))
    media = Decoder(Odd(*ARCHS), 0.4, 2).read([("pixels", "1", 0), ("pixels", "2", 0)])
    assert [x.item() for x in media] == [1, 2]


def test_a_child_that_cannot_start_is_no_fault_of_a_medium(monkeypatch):
    monkeypatch.setattr(machine, "limit_memory", lambda _: os._exit(1))
    with pytest.raises(UserError, match="could not start"):
        list(Decoder(Odd(*ARCHS), 20).read([("pixels", "1", 0)]))


def test_children_that_are_kept_read_all_that_comes():
    decoder = Decoder(Odd(*ARCHS), 20, 2, keep=True)
    requests = [("pixels", f"pid{n}", 0) for n in range(4)]
    first = [int(x) for x in decoder.read(requests)]
    time.sleep(0.5)
    assert len({*first}) == 2 and [int(x) for x in decoder.read(requests)] == first
    assert isinstance([*decoder.read([("pixels", "crash", 0)])][0], MediaError)
    assert [int(x) for x in decoder.read(requests)][1::2] == first[1::2]  # the other one is there still


def test_a_child_waits_for_more_where_it_starts_slowly(monkeypatch):
    monkeypatch.setattr(machine, "idle_seconds", lambda: 0.5)
    decoder = Decoder(Odd(*ARCHS), 20)
    request = [("pixels", "pid", 0)]
    first, second = ([int(x) for x in decoder.read(request)] for _ in range(2))
    time.sleep(1)
    assert first == second != [int(x) for x in decoder.read(request)]
    assert isinstance([*decoder.read([("pixels", "crash", 0)])][0], MediaError)
    assert [x.item() for x in decoder.read([("pixels", "7", 0)])] == [7]


RUN = """
import sys
sys.path.insert(0, "tests")
from test_decoding import *
decoding.MEDIA_PER_CHILD["fork"] = 1
kept = Decoder(Odd(*ARCHS), 0.5, 2, keep=True)
list(kept.read([("pixels", "pid", 0), ("pixels", "pid too", 0)]))
media = Decoder(Odd(*ARCHS), 0.5, 3).read([("pixels", name, 0) for name in ("pid", "pid", "hang")])
print(int(next(media)), int(next(media)), flush=True)
import multiprocessing
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_children_end_after_the_run_is_killed_even_one_that_hangs():
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(RUN)], cwd=ROOT, stdout=subprocess.PIPE,
                           text=True)
    run.stdout.readline()
    children = [int(word) for word in run.stdout.readline().split()]
    assert len(children) in (3, 4)  # two that are kept, the one that hangs, perhaps the one that is done
    run.send_signal(signal.SIGKILL)
    run.communicate()
    end = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, children))
