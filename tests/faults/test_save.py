"""Saves that fail and files that are damaged: an earlier checkpoint stays, the damaged one is detected."""

import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from harness import assert_same_run, made_by_pytest, start, wait
from test_run import train

from omni.base import checkpoint
from omni.base.errors import UserError

SETTINGS = {"save_every_steps": 2, "keep_checkpoints": 2}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    return train(toy, tmp_path_factory.mktemp("never_stopped"), **SETTINGS)


def flip(path: Path, whole: bytes, bit: int) -> None:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)


def test_every_flipped_bit_is_detected(tmp_path, full):
    """Random bits, and all of the last 60 bytes, which hold the checksum."""
    path, rng = tmp_path / "a.pt", random.Random(0)
    checkpoint.save(path, "thing", {"x": torch.randn(300), "y": {"z": [1, 2.5, "text"]}})
    good = path.read_bytes()
    bits = rng.sample(range(8 * len(good)), 2000 if full else 200)
    bits += range(8 * len(good) - (480 if full else 100), 8 * len(good))
    for bit in bits:
        flip(path, good, bit)
        with pytest.raises(UserError, match="a.pt"):
            checkpoint.load(path, "thing", "")
    print(f"{len(bits)} of {len(bits)} flipped bits detected")
    path.write_bytes(good)
    assert checkpoint.load(path, "thing", "")["y"] == {"z": [1, 2.5, "text"]}


@pytest.mark.parametrize("size", [0, 1, 30, 40, 41, 1000])
def test_every_truncation_is_detected(tmp_path, size):
    checkpoint.save(tmp_path / "a.pt", "thing", {"x": torch.randn(300)})
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:size])
    with pytest.raises(UserError, match="a.pt"):
        checkpoint.load(tmp_path / "a.pt", "thing", "")


def test_zip_readers_and_torch_read_a_file_with_its_checksum(tmp_path):
    checkpoint.save(tmp_path / "a.pt", "thing", {"x": 1})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["x"] == 1


def test_a_newest_checkpoint_with_a_flipped_bit_is_ignored_or_refused(toy, tmp_path, whole, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    newest = out / "step_000010.pt"
    flip(newest, newest.read_bytes(), 8 * 5000)
    with pytest.raises(UserError, match=r"step_000010.pt: damaged"):
        train(toy, tmp_path, "--resume", str(newest), **SETTINGS)
    train(toy, tmp_path, "--resume", **SETTINGS)
    assert "ignored" in capsys.readouterr().out
    assert_same_run(out, whole, 10)


@pytest.mark.parametrize("at", [3_000, 100_000])
def test_a_full_disk_is_one_line_that_names_the_checkpoint_kept(toy, tmp_path, whole, at):
    """A limit on the size of files simulates a full disk: every write beyond it fails."""
    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "step_000010.pt").unlink()
    before = (tmp_path / "out" / "step_000008.pt").read_bytes()
    log = tmp_path.parent / f"{tmp_path.name}.log"
    config = toy.write(tmp_path, **SETTINGS, feature_cache_dir=str(whole.parent / "features"))  # all there
    assert wait(start(["--config", config, "--resume"], log, limit_file_size)) == 2
    said = log.read_text()
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: ") and "intact" in said
    if at > 50_000:  # the metrics fit, the checkpoint does not
        assert "step_000010.pt" in said.splitlines()[-1] and "step_000008.pt is kept" in said
    assert (tmp_path / "out" / "step_000008.pt").read_bytes() == before
    assert not list((tmp_path / "out").glob("step_*.tmp"))
    assert wait(start(["--config", config, "--resume"], log)) == 0
    assert_same_run(tmp_path / "out", whole, 10)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user without permission")
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_without_permission_is_one_line(toy, tmp_path_factory, whole, resume):
    folder = tmp_path_factory.mktemp("forbidden")
    for part in (folder, *made_by_pytest(folder), toy.root):
        part.chmod(0o755)
    shutil.copytree(whole, folder / "out") if resume else (folder / "out").mkdir()
    config = toy.write(folder, **SETTINGS)
    log = folder.parent / f"{folder.name}.log"
    log.touch()
    log.chmod(0o666)
    child = start(["--config", config, *(["--resume"] if resume else [])], log, lambda: os.setuid(65534))
    assert wait(child) == 2
    said = log.read_text()
    assert "Traceback" not in said and str(folder / "out") in said and "ermission denied" in said


def test_a_save_that_reads_back_wrong_fails(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.pt", "thing", {"x": 1})
    before = (tmp_path / "a.pt").read_bytes()
    fsync = os.fsync

    def lying_disk(handle):
        fsync(handle)
        os.pwrite(handle, b"?", 100)
    monkeypatch.setattr(os, "fsync", lying_disk)
    with pytest.raises(UserError, match="not what was written"):
        checkpoint.save(tmp_path / "a.pt", "thing", {"x": 2})
    assert (tmp_path / "a.pt").read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_older_checkpoints_stay_if_a_save_fails(toy, tmp_path, monkeypatch):
    save, kept = checkpoint.save, []

    def fails_at_6(path, kind, content):
        if kind == "step" and content["step"] == 6:
            kept.extend(sorted(p.name for p in path.parent.glob("step_*")))
            raise UserError(f"{path}: can't be written (No space left on device)")
        save(path, kind, content)
    monkeypatch.setattr(checkpoint, "save", fails_at_6)
    with pytest.raises(UserError, match="step_000005.pt is kept: --resume"):
        train(toy, tmp_path, **SETTINGS)
    assert kept == ["step_000004.pt", "step_000005.pt"]
    assert sorted(p.name for p in (tmp_path / "out").glob("step_*")) == kept
