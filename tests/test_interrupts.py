"""What a run says when it is stopped, and what it notices when it is resumed."""

import os
import shutil

import pytest
import torch
from PIL import Image
from test_run import read, train

from omni.base import checkpoint
from omni.base.errors import UserError
from omni.data.media import Piece, file_of
from omni.train import interrupts

ONE = {"samples_per_epoch": 8, "num_epochs": 1, "eval_samples": 1}


def test_ctrl_c_advises_what_works(monkeypatch, capsys):
    monkeypatch.setattr(os, "_exit", lambda code: None)
    stop = interrupts.StopSignal()
    stop._handle(2, None)  # before training there is no step checkpoint
    assert capsys.readouterr().out == \
        "stopped; start the same command again; features that were computed are kept\n"
    stop.requested = False
    with stop.deferred():
        pass
    stop._handle(2, None)  # in the evaluation after an epoch
    assert capsys.readouterr().out == "stopped; continue with: --resume\n"


@pytest.mark.parametrize("how", ["other", "time"])
def test_media_that_were_replaced_are_noticed(toy, tmp_path, how, capsys):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    mix = {"image_text": 0.5, "text_only": 0.5}
    train(toy, tmp_path, data_dir=str(data), data_mix=mix, **ONE)
    train(toy, tmp_path, "--resume", data_dir=str(data), data_mix=mix, **ONE)
    os.utime(data / "image_text" / "val_0.png", (1, 1))  # changes figures, and not the training
    capsys.readouterr()
    train(toy, tmp_path, "--resume", data_dir=str(data), data_mix=mix, **ONE)
    assert 'changed since step_000002.pt: "data_mix.image_text.val.media"' in capsys.readouterr().out
    picture = data / "image_text" / "train_3.png"
    if how == "other":
        before = picture.stat()
        Image.new("RGB", (200, 100), "red").save(picture)
        os.utime(picture, (before.st_atime, before.st_mtime))
    else:
        os.utime(picture, (1, 1))
    with pytest.raises(UserError, match='"data_mix.image_text.media" .*12 files.* --allow-change data_mix'):
        train(toy, tmp_path, "--resume", data_dir=str(data), data_mix=mix, **ONE)
    train(toy, tmp_path, "--resume", "--allow-change", "data_mix", data_dir=str(data), data_mix=mix, **ONE)


def test_a_checkpoint_without_a_note_of_the_media_is_resumed(toy, tmp_path):
    out = train(toy, tmp_path, **ONE)
    (step,) = out.glob("step_*.pt")
    content = read(step)
    content["inputs"] = {key: value for key, value in content["inputs"].items() if ".media" not in key}
    assert len(content["inputs"]) < len(read(step)["inputs"])
    checkpoint.save(step, "step", content)
    train(toy, tmp_path, "--resume", **ONE)


def test_the_file_of_a_piece_is_the_one_that_holds_it(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"x" * 100)
    tar = str(tmp_path / "s.tar")
    piece = Piece.at(tar, 10, 20, "a.wav")
    assert file_of(piece) == tar and file_of(Piece.segment(piece, 1, 2)) == tar
    assert file_of(Piece.segment(tar, 1, None)) == tar and file_of("a@1+2/b.wav") == "a@1+2/b.wav"


def test_a_gpu_that_is_full_while_batches_are_copied_is_explained_after_a_save():
    def steps():
        yield "a step"
        raise torch.OutOfMemoryError("CUDA out of memory")
    saved, taken = [], []
    with pytest.raises(UserError, match="out of GPU memory in copying batches ahead: raise gradient"):
        for step in interrupts.explained(steps(), lambda: saved.append(len(taken))):
            taken.append(step)
    assert taken == ["a step"] and saved == [1]
