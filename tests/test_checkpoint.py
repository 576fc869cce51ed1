"""Checkpoints: written completely or not at all, never run code, and give one-line errors."""

import os

import pytest
import torch
from torch import nn

from omni.base import checkpoint
from omni.base.config import VisionArch
from omni.base.errors import UserError
from omni.model.vision_encoder import VisionEncoder


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "new" / "a.pt", "thing", {"x": torch.arange(3)})
    content = checkpoint.load(tmp_path / "new" / "a.pt", "thing", "")
    assert content["x"].tolist() == [0, 1, 2] and os.listdir(tmp_path / "new") == ["a.pt"]


@pytest.mark.parametrize("where", ["torch.save", "os.fsync", "os.replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "a.pt"
    checkpoint.save(path, "thing", {"x": 1})
    before = path.read_bytes()

    def full(*arguments, **_):
        if where == "torch.save":
            arguments[1].write(b"half a file")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(where, full)
    refused(lambda: checkpoint.save(path, "thing", {"x": 2}), "a.pt", "No space left")
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, "thing", {"x": 1})
    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, "thing", {"x": 2})
    assert checkpoint.load(path, "thing", "")["x"] == 1


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "kind": "thing", "x": Evil(tmp_path / "pwned")},
               tmp_path / "a.pt")
    refused(lambda: checkpoint.load(tmp_path / "a.pt", "thing", "make it anew"), "a.pt", "make it anew")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"<html>", b"\0" * 1000])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    refused(lambda: checkpoint.load(tmp_path / "a.pt", "thing", "make it anew"), "a.pt", "make it anew")


@pytest.mark.parametrize("content", [[1], {"x": 1}, {"format": "other", "kind": "thing"}, torch.zeros(2),
                                     {"format": checkpoint.FORMAT}])
def test_a_checkpoint_of_another_format_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    refused(lambda: checkpoint.load(tmp_path / "a.pt", "thing", "make it anew"), "a.pt", "make it anew")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a.pt", "thing", {"x": torch.randn(1000)})
    whole = (tmp_path / "a.pt").read_bytes()
    for part in (0.1, 0.5, 0.99):
        (tmp_path / "a.pt").write_bytes(whole[:int(len(whole) * part)])
        refused(lambda: checkpoint.load(tmp_path / "a.pt", "thing", "again"), "a.pt", "again")


def test_another_kind_a_missing_file_and_a_folder_name_the_remedy(tmp_path):
    checkpoint.save(tmp_path / "a.pt", "thing", {})
    refused(lambda: checkpoint.load(tmp_path / "a.pt", "thinker", "make it"), '"thing"', '"thinker"',
            "make it")
    for name in ("none.pt", "."):
        refused(lambda name=name: checkpoint.load(tmp_path / name, "thinker", "python -m omni.pretrain"),
                "omni.pretrain")


@pytest.mark.parametrize("change, counts, first", [
    (lambda s: s.pop("weight"), "1 missing, 0 unexpected, 0 mis-shaped", "weight"),
    (lambda s: s.update(more=torch.zeros(1)), "0 missing, 1 unexpected, 0 mis-shaped", "more"),
    (lambda s: s.update(bias=torch.zeros(9)), "0 missing, 0 unexpected, 1 mis-shaped", "bias"),
    (lambda s: (s.pop("weight"), s.update(bias=torch.zeros(9))), "1 missing, 0 unexpected, 1 mis-shaped",
     "weight"),
    (lambda s: s.update(bias="text"), "", "bias")])
def test_tensors_that_do_not_fit_are_counted_and_named(change, counts, first):
    module = nn.Linear(3, 2)
    state = dict(module.state_dict())
    change(state)
    refused(lambda: checkpoint.load_state(module, state, "part", "a.pt"), "a.pt", counts, first)


@pytest.mark.parametrize("change",
                         [lambda c: c["arch"].update(wide=3), lambda c: c["arch"].update(width="big"),
                                    lambda c: c.update(arch=[]), lambda c: c["arch"].update(layers=3),
                                    lambda c: c.pop("arch"), lambda c: c.pop("state")])
def test_a_part_with_a_wrong_architecture_or_no_weights_is_refused(change):
    module = VisionEncoder(VisionArch(image_size=32, patch_size=16, width=16, layers=1, heads=2, mlp_width=8))
    content = checkpoint.part(module)
    assert "0 missing" in checkpoint.build_part(VisionEncoder, VisionArch, content, "vision", "a.pt")[1]
    change(content)
    refused(lambda: checkpoint.build_part(VisionEncoder, VisionArch, content, "vision", "a.pt"), "a.pt")


def test_a_fingerprint_changes_with_one_bit():
    module = nn.Linear(3, 2)
    before = checkpoint.fingerprint(module.state_dict())
    assert checkpoint.fingerprint(module.state_dict()) == before
    with torch.no_grad():
        module.bias.view(torch.int32)[0] ^= 1
    assert checkpoint.fingerprint(module.state_dict()) != before
