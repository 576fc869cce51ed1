"""Runs, chat and locks with what Windows and macOS lack taken away; file names and texts as written there."""

import ctypes
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_run import rows, train

from omni.base import machine
from omni.data.decoding import Decoder
from omni.train.feature_cache import FeatureCache, Key

LAPTOP = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "laptop"), "PYTHONIOENCODING": "cp1252"}


def laptop(*arguments) -> subprocess.Popen:
    """Starts `python ARGUMENTS` without what Windows lacks, on a console that is no UTF-8."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=LAPTOP, stdin=pipe,
                            stdout=pipe, stderr=pipe, encoding="latin-1")


def test_nothing_that_is_taken_away_is_left():
    code = """import os, signal
for name in ("fcntl", "resource"):
    try:
        __import__(name, {"__name__": "omni.base.machine"}); raise SystemExit(name)
    except ImportError: pass
assert not hasattr(os, "fork") and not hasattr(signal, "SIGALRM")
for path in ("/proc/self/statm", "/"):
    try:
        os.open(path, os.O_RDONLY); raise SystemExit(path)
    except OSError: pass
from omni.base import machine
from omni.data.decoding import Decoder
from omni.train.feature_cache import FeatureCache, Key
assert machine.children().get_start_method() == "spawn" and machine.peak_memory() == 0"""
    out, err = (process := laptop("-c", code)).communicate(timeout=60)
    assert process.returncode == 0, out + err


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    """A run with all that Linux has."""
    return train(toy, tmp_path_factory.mktemp("whole"), save_every_steps=3)


@pytest.fixture(scope="module")
def out(toy, tmp_path_factory, whole) -> Path:
    """The same run without it, killed and resumed."""
    folder = tmp_path_factory.mktemp("laptop")
    settings = {"save_every_steps": 3, "num_workers": "auto", "feature_cache_dir": str(folder / "features")}
    config, out = toy.write(folder, **settings), folder / "out"
    first = laptop("sft_omni.py", "--config", config)
    end = time.monotonic() + 240
    while not list(out.glob("step_*.pt")) and time.monotonic() < end and first.poll() is None:
        time.sleep(0.02)
    lock = f"from omni.base import machine; machine.lock(open({str(out / 'run.lock')!r}, 'a+'))"
    second = laptop("-c", lock)
    assert "Error" in second.communicate(timeout=60)[1], "the folder of a run is locked"
    first.send_signal(signal.SIGKILL)
    said = first.communicate()
    assert first.returncode == -signal.SIGKILL and list(out.glob("step_*.pt")), said
    resumed = laptop("sft_omni.py", "--config", config, "--resume")
    said = resumed.communicate(timeout=240)
    assert resumed.returncode == 0 and "resumed at step" in said[0], said
    return out


def test_a_killed_run_gives_the_same_bits_without_what_windows_lacks(out, whole):
    first, second = (torch.load(folder / "omni_final.pt", weights_only=True) for folder in (out, whole))
    for part in ("thinker", "audio_encoder", "vision_encoder"):
        for name, weight in first[part]["state"].items():
            assert torch.equal(weight, second[part]["state"][name]), name
    assert [row["loss"] for row in rows(out, "step")] == [row["loss"] for row in rows(whole, "step")]


def test_chat_on_a_console_that_is_no_utf8(out, toy):
    picture = toy.root / "data" / "image_text" / "val_0.png"
    chat = laptop("-m", "omni.chat", "--ckpt", out / "omni_final.pt", "--json")
    said, errors = chat.communicate(f"/image {picture}\nWas für 1 Bild? \x8d\n/quit\n", timeout=240)
    (answer,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert chat.returncode == 0 and answer["question"] == "Was für 1 Bild? \ufffd", errors


@pytest.mark.parametrize("text", ["\u2192 \u03bcOmni \u4f60 \udcff"])
def test_any_text_can_be_printed_on_a_console_that_is_no_utf8(text):
    process = laptop("-c", f"""from omni.base.console import command, say
command(lambda: (say({text!r}), print({text!r}), say("end")))""")
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and said.splitlines()[-1] == "end" and "\\u2192" in said, errors


def test_a_lock_is_held_until_its_process_ends(tmp_path):
    """Windows can't read what is locked, so the text that says who holds it must lie elsewhere."""
    path = tmp_path / "run.lock"
    code = f"""from omni.base import machine
from omni.data.decoding import Decoder
from omni.train.feature_cache import FeatureCache, Key
file = open({str(path)!r}, "a+", encoding="utf-8"); machine.lock(file)
file.truncate(0); file.write("held"); file.flush(); print("locked", flush=True); input()"""
    holder = laptop("-c", code)
    assert holder.stdout.readline() == "locked\n"
    other = laptop("-c", code)
    said, errors = other.communicate(timeout=60)
    assert not said and "Error" in errors and path.read_text(encoding="utf-8") == "held"
    holder.kill()
    holder.communicate()
    third = laptop("-c", code)
    assert third.communicate("\n", timeout=60)[0] == "locked\n" and third.returncode == 0


def test_a_process_that_hangs_with_the_interpreters_lock_is_ended():
    code = ("from omni.base import machine; import re; machine.end_after(0.3); "
            "re.match('(a+)+$', 'a' * 60 + 'b')")
    process = laptop("-c", code)
    process.communicate(timeout=20)
    assert process.returncode == 1
    process = laptop("-c", "from omni.base import machine; import time\n"
                           "machine.end_after(0.3); machine.end_after(0); time.sleep(1)")
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_memory_is_limited_where_the_system_cannot(monkeypatch):
    peak = machine.peak_memory
    own = machine._own
    monkeypatch.setattr(machine, "_own", lambda name: "" if name == "statm" else own(name))

    def fill():
        machine.limit_memory(2 ** 27)
        held = [bytearray(b"x") * 2 ** 26 for _ in range(2 ** 6)]
        time.sleep(30)
        return held
    assert peak() > 0
    child = multiprocessing.get_context("fork").Process(target=fill, daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == machine.OUT_OF_MEMORY


def test_peak_memory_is_asked_of_windows():
    class Function:
        def __init__(self, call):
            self.call = call

        def __call__(self, *arguments):
            return self.call(*arguments)

    def counters(process, pointer, size):
        assert process == 99 and size == ctypes.sizeof(machine._Counters)
        pointer._obj.peak = 5 * 2 ** 30
        return 1
    kernel = SimpleNamespace(GetCurrentProcess=Function(lambda: 99),
                             K32GetProcessMemoryInfo=Function(counters))
    assert machine._windows_peak(kernel) == 5 * 2 ** 30


def test_what_makes_batches_holds_no_weights(toy, model, monkeypatch):
    """A spawned process gets it by pickle, and weights on a GPU can't be sent."""
    collate = toy.collator(model)
    decoder = Decoder(collate.reader, 20)
    assert len(list(decoder.read([("mel", toy.samples("audio_text")[0].audios[0], 0)]))) == 1
    monkeypatch.setattr(torch.nn.Module, "__reduce_ex__", lambda *_: pytest.fail("a module is pickled"))
    batch = pickle.loads(pickle.dumps(collate))(toy.samples("image_audio_text")[:3])
    assert torch.equal(batch.ids, collate(toy.samples("image_audio_text")[:3]).ids)
    assert pickle.loads(pickle.dumps(decoder)).frames == decoder.frames


def test_cached_features_are_mapped_again_by_a_spawned_process(tmp_path):
    cache, key = FeatureCache(tmp_path, "encoder", 2 ** 30), Key.of(b"a")
    feature = torch.randn(500, 100).half()
    cache.add(key, feature)
    cache.flush()
    sent = pickle.dumps(cache)
    assert len(sent) < feature.nbytes / 10 and torch.equal(pickle.loads(sent).read(key), feature)


SERVE = """
from omni.base.config import VisionArch
from omni.data.media_reader import MediaReader
from omni.serve.decoders import Decoders
from omni.serve.protocol import ApiError, Medium
pool, reader = Decoders(), MediaReader(VisionArch(image_size=32), None)
for content in (open(PATH, "rb").read(), b"no picture", open(PATH, "rb").read()):
    try:
        print(*pool.read([Medium("image 1", "pixels", content)], reader)["image 1"].shape)
    except ApiError as err:
        print("refused")
pool.close()
"""


def test_a_server_decodes_media_without_what_windows_lacks(toy):
    picture = toy.samples("image_text")[0].images[0]
    process = laptop("-c", SERVE.replace("PATH", repr(picture)))
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and said.splitlines() == ["3 32 32", "refused", "3 32 32"], errors
