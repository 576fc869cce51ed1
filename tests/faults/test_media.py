"""Bad files are read correctly or refused with a reason: no crash, no hang, and the other samples stay."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_media import IRREGULAR, PICTURES, RED, SOUND, SOUNDS
from harness import assert_same_run, made_by_pytest, next_try, start, wait
from test_run import rows, train

from omni.base.config import AudioArch, VisionArch
from omni.base.errors import UserError
from omni.data import audio, skipped
from omni.data.decoding import THREAD, Decoder
from omni.data.media_reader import MediaReader

SIDE = 32
ARCHS = VisionArch(image_size=SIDE), AudioArch()


def read(folder, files: dict, reader=None, method="pixels", timeout=20.0) -> dict:
    """Reads the files as a run does: {name: array, or the reason why it was refused}."""
    requests = [(method, str(folder / name), 0) for name in files]
    got = Decoder(reader or MediaReader(*ARCHS), timeout).read(requests)
    return {name: str(medium) if isinstance(medium, audio.MediaError) else medium.numpy()
            for name, medium in zip(files, got, strict=True)}


def test_images_are_read_correctly_or_refused(tmp_path):
    for name, (content, _) in PICTURES.items():
        (tmp_path / name).write_bytes(content)
    for name, got in read(tmp_path, PICTURES).items():
        wanted = PICTURES[name][1]
        if isinstance(got, str):
            assert isinstance(wanted, str) and wanted in got, f"{name}: refused, {got}"
            assert got and "\n" not in got and str(tmp_path) not in got, name
            continue
        assert got.shape == (3, SIDE, SIDE) and np.isfinite(got).all() and abs(got).max() <= 1, name
        shown = (got + 1) * 127.5
        if wanted == "corner":
            assert abs(shown[:, 4, 4] - RED).max() < 12 and shown[:, 24, 24].min() > 250, name
        elif isinstance(wanted, tuple):
            color = shown[:, SIDE // 2, SIDE // 2]
            assert abs(color - wanted).max() <= 6, f"{name}: {color}, not {wanted}"
        else:
            assert wanted == "", f"{name}: should have been refused ({wanted})"
    print(f"{len(PICTURES)} pictures")


def test_sounds_are_read_correctly_or_refused(tmp_path):
    class Plain(MediaReader):
        def wave(self, path, take):
            return audio.load(path)
    for name, (content, _) in SOUNDS.items():
        (tmp_path / name).write_bytes(content)
    for name, got in read(tmp_path, SOUNDS, Plain(*ARCHS), "wave").items():
        wanted = SOUNDS[name][1]
        if isinstance(got, str):
            assert isinstance(wanted, str) and wanted in got, f"{name}: refused, {got}"
            assert got and "\n" not in got and str(tmp_path) not in got, name
            continue
        assert got.dtype == np.float32 and np.isfinite(got).all(), name
        if wanted is True:
            power = abs(np.fft.rfft(got[1000:7000] * np.hanning(len(got[1000:7000]))))
            assert abs(power.argmax() * 16_000 / len(got[1000:7000]) - SOUND) < 5, f"{name}: another pitch"
            assert abs(len(got) - 8_000) < 2_500, f"{name}: {len(got)} samples"
        else:
            assert wanted == "", f"{name}: should have been refused ({wanted})"
    print(f"{len(SOUNDS)} sounds")


@pytest.mark.parametrize("method", ["pixels", "mel"])
def test_a_path_that_is_no_regular_file_is_refused_at_once(tmp_path, method):
    for name, make in IRREGULAR.items():
        make(tmp_path / name)
    begun = time.monotonic()
    assert all(isinstance(got, str) and got for got in read(tmp_path, IRREGULAR, method=method).values())
    assert time.monotonic() - begun < 5


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user without permission")
def test_a_file_without_permission_is_skipped_and_named(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unreadable")
    for part in (folder, *made_by_pytest(folder), toy.root):
        part.chmod(0o755)
    data = folder / "data"
    shutil.copytree(toy.root / "data", data)
    (data / "image_text" / "train_1.png").chmod(0)
    train(toy, folder / "before", num_epochs=1)  # imports every module while that is still permitted
    for name in ("out", "features"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    config = toy.write(folder, data_dir=str(data), max_skipped=0.5,
                       feature_cache_dir=str(folder / "features"))
    log = folder.parent / "unreadable.log"
    log.touch()
    log.chmod(0o666)
    assert wait(start(["--config", config], log, lambda: os.setuid(65534))) == 0, log.read_text()[-2000:]
    (row,) = map(json.loads, (folder / "out" / "skipped.jsonl").read_text().splitlines())
    assert row["source"] == "image_text" and row["media"] == [str(data / "image_text" / "train_1.png")]
    assert "ermission" in row["reason"]


class Slow(MediaReader):
    """Hangs on one file, crashes on another, and runs out of memory on a third."""

    def pixels(self, path, take=0):
        if path.endswith("hang.png"):
            time.sleep(600)
        if path.endswith("crash.png"):
            os.kill(os.getpid(), 9)
        if path.endswith("memory.png"):
            torch.zeros(2 ** 40)
        return super().pixels(path, take)


def test_media_that_hang_or_crash_are_refused_and_the_others_are_read(tmp_path):
    names = ["a.png", "hang.png", "b.png", "crash.png", "c.png", "memory.png", "d.png"]
    for name in names:
        (tmp_path / name).write_bytes(PICTURES["png_as.jpg"][0])
    begun = time.monotonic()
    got = read(tmp_path, dict.fromkeys(names), Slow(*ARCHS), timeout=1.0)
    assert time.monotonic() - begun < 20
    assert "longer than 1 s" in got["hang.png"] and "crashed" in got["crash.png"] and got["memory.png"]
    assert all(isinstance(got[name], np.ndarray) for name in ("a.png", "b.png", "c.png", "d.png"))


class Once(Slow):
    """Hangs or crashes only the first time that a file is read, as if the machine had been asleep."""

    def pixels(self, path, take=0):
        if not os.path.exists(path + ".read"):
            open(path + ".read", "w").close()
            return super().pixels(path, take)
        return MediaReader.pixels(self, path, take)


def test_a_medium_that_failed_once_is_tried_again(tmp_path):
    names = ["a hang.png", "b hang.png", "crash.png"]
    for name in names:
        (tmp_path / name).write_bytes(PICTURES["png_as.jpg"][0])
    got = read(tmp_path, dict.fromkeys(names), Once(*ARCHS), timeout=1.0)
    assert all(isinstance(got[name], np.ndarray) for name in names), got


class Counting(MediaReader):
    """Counts the decodings of each image in a file beside it."""

    def plain_image(self, path):
        with open(path + ".read", "a") as file:
            file.write("x")
        return super().plain_image(path)


def test_a_medium_is_decoded_once_for_all_its_takes(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Path(path).write_bytes(PICTURES["png_as.jpg"][0])
    requests = [("pixels", path, take) for path in paths for take in range(3)]
    got = list(Decoder(Counting(*ARCHS), 20.0).read(requests))
    assert [Path(path + ".read").read_text() for path in paths] == ["x", "x"]
    for (_, path, take), medium in zip(requests, got, strict=True):
        assert torch.equal(medium, MediaReader(*ARCHS).pixels(path, take))


def test_child_and_thread_end_when_reading_ends_or_is_stopped(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES["png_as.jpg"][0])
    requests = [("pixels", str(tmp_path / "a.png"), take) for take in range(999)]
    for wanted in (999, 3):
        media = Decoder(MediaReader(*ARCHS), 20.0).read(requests)
        assert len(list(zip(range(wanted), media, strict=False))) == wanted
        media.close()
        assert not multiprocessing.active_children()
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join(5)
                assert not thread.is_alive()


class Hanging(MediaReader):
    def pixels(self, path, take=0):
        time.sleep(60)


def test_a_child_that_cannot_be_killed_is_not_waited_for(tmp_path, monkeypatch):
    """As when it waits for a lost network disk. Here its own alarm ends it after about six seconds."""
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", lambda _: None)
    begun = time.monotonic()
    assert "took longer" in read(tmp_path, {"a.png": None}, Hanging(*ARCHS), timeout=0.2)["a.png"]
    assert time.monotonic() - begun < 9


def test_a_child_reads_the_same_bits_as_this_process(toy):
    reader = MediaReader(*ARCHS)
    for source, method in (("image_text", "pixels"), ("audio_text", "mel")):
        paths = [p for s in toy.samples(source) for p in s.images + s.audios]
        requests = [(method, path, take) for path in paths for take in (0, 1)]
        for (_, path, take), got in zip(requests, Decoder(reader, 20.0).read(requests), strict=True):
            assert torch.equal(got, getattr(reader, method)(path, take))


def spoil(toy, tmp_path, *names: str):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    for name in names:
        (data / name).write_bytes(b"<html>404</html>")
    return data


def test_skipped_samples_are_listed_and_the_mix_of_the_others_is_unchanged(toy, tmp_path):
    whole = train(toy, tmp_path / "whole")
    data = spoil(toy, tmp_path, "image_text/train_1.png", "image_text/val_0.png")
    out = train(toy, tmp_path, data_dir=str(data), max_skipped=0.5)
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [(row["source"], row["split"], len(row["media"])) for row in listed] == [
        ("image_text", "train", 1), ("image_text", "val", 1)]
    assert all("not an image" in row["reason"] for row in listed)
    for row, other in zip(rows(out, "epoch"), rows(whole, "epoch"), strict=True):
        assert row["skipped"]["image_text"] and not row["skipped"]["text_only"]
        for name, share in other["mix"].items():
            assert row["mix"][name]["samples"] == share["samples"]
            assert name == "image_text" or row["mix"][name] == share or share["tokens"] != 1
    assert not (whole / "skipped.jsonl").exists()


@pytest.mark.parametrize("workers, name, message", [
    (0, "train_0", "readable when the run began.*not an image.*image_text.*--resume"),
    (1, "train_0", "readable when the run began.*not an image.*image_text.*--resume"),
    (0, "val_0", "image_text: a held-out medium.*readable at the start.*not an image.*--resume")])
def test_a_file_that_breaks_during_a_run_gives_a_one_line_error_and_the_run_can_resume(
        toy, tmp_path, monkeypatch, workers, name, message):
    data = spoil(toy, tmp_path)
    settings = {"data_dir": str(data), "feature_cache_gb": 0, "save_every_steps": 1, "num_workers": workers}
    whole = train(toy, tmp_path / "whole", **settings)
    picture = data / "image_text" / f"{name}.png"
    good, next_step = picture.read_bytes(), skipped.drop_overlong
    monkeypatch.setattr(skipped, "drop_overlong", lambda *a: (picture.write_bytes(b"<html>"), next_step(*a)))
    with pytest.raises(UserError, match=message):
        train(toy, tmp_path, **settings)
    monkeypatch.undo()
    picture.write_bytes(good)
    again = next_try(tmp_path / "out")
    train(toy, tmp_path, *again, *(["--allow-change", "data_mix"] if "--resume" in again else []), **settings)
    assert_same_run(tmp_path / "out", whole, 10)


def test_more_skipped_samples_than_max_skipped_stop_the_run_with_a_list(toy, tmp_path):
    data = spoil(toy, tmp_path, *(f"image_text/train_{i}.png" for i in range(3)))
    with pytest.raises(UserError, match="source image_text.*3 of 15.*not an image.*jsonl lists") as caught:
        train(toy, tmp_path, data_dir=str(data), max_skipped=0.1)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "skipped.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("feature_cache_gb", [0.1, 0.0])
def test_a_file_name_that_is_not_utf8_works_like_any_other(toy, tmp_path, feature_cache_gb):
    """Old disks and archives have such names. One image is broken, so skipped.jsonl must name it too."""
    pictures = sorted((toy.root / "data" / "image_text").rglob("*.png"))
    for i, kind in enumerate(["cat", "dog"] * 12):
        (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[i % len(pictures)],
                    os.fsencode(tmp_path / "photos" / kind) + b"/caf\xe9_%d.png" % i)
    with open(os.fsencode(tmp_path / "photos" / "cat") + b"/na\xefve.png", "wb") as broken:
        broken.write(b"no picture")
    source = {"weight": 1, "image_folder": str(tmp_path / "photos"), "question": "What is it?", "val": 0.2}
    out = train(toy, tmp_path, data_mix={"photos": source}, num_epochs=1, feature_cache_gb=feature_cache_gb)
    skipped = json.loads((out / "skipped.jsonl").read_text(encoding="utf-8"))
    assert os.fsencode(skipped["media"][0]).endswith(b"na\xefve.png")


def test_a_reason_that_quotes_invalid_unicode_can_be_printed(tmp_path):
    line = '{"messages": [{"role": "user", "content": "a"}, {"role": "%s", "content": "b"}]}\n'
    (tmp_path / "m.jsonl").write_text(line % "assistant" + line % "\\ud800")
    done = subprocess.run([sys.executable, "-m", "omni.inspect", str(tmp_path / "m.jsonl")],
                          capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0 and r"\ud800" in done.stdout, done.stderr
