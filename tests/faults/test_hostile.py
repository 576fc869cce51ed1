"""Hostile checkpoints: code hidden anywhere in a file must not run."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from test_run import train

from omni import chat
from omni.base import checkpoint
from omni.base.errors import UserError


class Evil:
    """Creates a folder if it is unpickled without protection, which shows that its code ran."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(scope="module")
def out(toy, tmp_path_factory) -> Path:
    return train(toy, tmp_path_factory.mktemp("run"), num_epochs=1)


KINDS = ["thinker_ckpt", "audio_ckpt", "vision_ckpt", "resume", "newest", "omni"]


def victim(toy, out: Path, tmp_path: Path, kind: str) -> tuple[Path, object]:
    """(copy of a good checkpoint of a kind, a function that reads it)."""
    if kind.endswith("_ckpt"):
        path = tmp_path / "part.pt"
        shutil.copy(toy.config[kind], path)
        return path, lambda: train(toy, tmp_path, **{kind: str(path)})
    shutil.copytree(out, tmp_path / "out", dirs_exist_ok=True)
    if kind == "omni":
        path = tmp_path / "out" / "omni_final.pt"
        return path, lambda: chat.main(["--ckpt", str(path), "hello"])
    path = tmp_path / "out" / "step_000005.pt"
    return path, lambda: train(toy, tmp_path, "--resume", *([str(path)] if kind == "resume" else []))


def places(content: dict) -> list[tuple]:
    """Places to hide an object: every key, and those one and two levels below."""
    found = []
    for key, value in content.items():
        found.append((key,))
        if isinstance(value, dict):
            for below in list(value)[:2]:
                found.append((key, below))
                if isinstance(value[below], dict) and value[below]:
                    found.append((key, below, next(iter(value[below]))))
    return found


def refused(call, path: Path) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_code_hidden_anywhere_in_a_checkpoint_is_refused_before_it_runs(toy, out, tmp_path, kind, full):
    """The checksum is right: an attacker can compute it."""
    path, read = victim(toy, out, tmp_path, kind)
    good = path.read_bytes()
    whole = torch.load(path, weights_only=True)
    where = places(whole)
    for place in where if full else where[:2] + where[-1:]:
        content = torch.load(io.BytesIO(good), weights_only=True)
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = Evil(tmp_path / "pwned")
        checkpoint.save(path, content["kind"], content)
        refused(read, path)
        assert not (tmp_path / "pwned").exists(), place


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain pickle", "old torch", "zip with code", "script", "empty", "text"])
def test_a_foreign_file_is_refused_before_it_runs(toy, out, tmp_path, kind, form):
    path, read = victim(toy, out, tmp_path, kind)
    content = {"format": checkpoint.FORMAT, "kind": "thinker", "x": Evil(tmp_path / "pwned")}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    elif form == "old torch":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "zip with code":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(content))
            file.writestr("archive/version", "3")
    elif form == "script":
        path.write_text("import os; os.mkdir('pwned')")
    else:
        path.write_bytes(b"" if form == "empty" else b"a checkpoint\n")
    refused(read, path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("change, words", [
    (lambda c: c.pop("sums"), "sums"), (lambda c: c["sums"].pop("loss"), "sums"),
    (lambda c: c["sums"].update(tokens="many"), "sums"), (lambda c: c.update(step="five"), "step"),
    (lambda c: c.update(model=[1]), "model"), (lambda c: c.pop("optimizer"), "optimizer"),
    (lambda c: c.update(optimizer={}), "optimizer"), (lambda c: c["optimizer"].pop("state"), "optimizer"),
    (lambda c: c["optimizer"].update(param_groups=[]), "optimizer"), (lambda c: c.update(config={}), "->"),
    (lambda c: c.update(inputs={}), "->"), (lambda c: c.update(step=-5), "step"),
    (lambda c: c.update(step=10 ** 30), "step"),
    (lambda c: c["model"].update({"thinker.norm.weight": torch.zeros(3)}), "(3,) in the file and (32,) here"),
    (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "optimizer")])
def test_a_step_checkpoint_that_lacks_something_is_one_line(toy, out, tmp_path, change, words):
    path, read = victim(toy, out, tmp_path, "resume")
    content = torch.load(path, weights_only=True)
    change(content)
    checkpoint.save(path, "step", content)
    with pytest.raises(UserError) as caught:
        read()
    assert path.name in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    lambda c: c.pop("tokenizer"), lambda c: c.update(tokenizer=3), lambda c: c.pop("projectors"),
    lambda c: c.update(projectors=[1]), lambda c: c.pop("thinker"), lambda c: c.update(audio_encoder=None),
    lambda c: c.pop("config"), lambda c: c.update(config={"batch_size": "x"}),
    lambda c: c["thinker"]["arch"].update(width=2 ** 18), lambda c: c["thinker"]["arch"].update(layers=40),
    lambda c: c["thinker"]["arch"].update(layers=10 ** 9),
    lambda c: c["vision_encoder"]["arch"].update(heads=0),
    lambda c: c["projectors"].popitem()])
def test_a_system_that_lacks_something_is_one_line(toy, out, tmp_path, change):
    path, read = victim(toy, out, tmp_path, "omni")
    content = torch.load(path, weights_only=True)
    change(content)
    checkpoint.save(path, "omni", content)
    refused(read, path)
