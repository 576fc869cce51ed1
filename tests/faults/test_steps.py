"""Failing steps: loss or gradients that are not finite, and a full GPU."""

import shutil

import pytest
import torch
from harness import assert_same_run
from test_run import assert_same, losses, read, rows, train

import sft_omni
from omni.base.errors import UserError
from omni.model.omni import OmniNetwork

NAN = float("nan")


def spoil(monkeypatch, steps: set[int], spoiled=lambda loss: loss * NAN) -> None:
    """Replace the training loss of these steps (from 1) by `spoiled(loss)`."""
    forward, count = OmniNetwork.forward, 0

    def call(self, batch):
        nonlocal count
        loss, *rest = forward(self, batch)
        if torch.is_grad_enabled():
            count += 1
            if count in steps:
                loss = spoiled(loss)
        return loss, *rest
    monkeypatch.setattr(OmniNetwork, "forward", call)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_bad_step_is_skipped_and_its_samples_are_named(toy, tmp_path, monkeypatch, capsys, value):
    spoil(monkeypatch, {3}, lambda loss: loss * value)
    out = train(toy, tmp_path, save_every_steps=1, keep_checkpoints=20)
    (bad,) = rows(out, "bad_step")
    assert bad["step"] == 3 and len(bad["samples"]) == 4
    assert all(name.split()[0] in toy.config["data_mix"] for name in bad["samples"])
    assert [row["step"] for row in rows(out, "step")] == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert [row["bad_steps"] for row in rows(out, "epoch")] == [1, 0]
    before, after = read(out / "step_000002.pt"), read(out / "step_000004.pt")
    assert all(value.isfinite().all() for value in after["model"].values())
    assert sum(n for n, _ in after["sums"]["mix"].values()) == 12  # not 16
    assert float(before["optimizer"]["state"][0]["step"]) + 1 == float(after["optimizer"]["state"][0]["step"])
    assert "step 3 is skipped" in capsys.readouterr().out


def test_too_many_in_a_row_stop_the_run_with_a_checkpoint_from_before_them(toy, tmp_path, monkeypatch):
    whole = train(toy, tmp_path / "whole")
    spoil(monkeypatch, {4, 5, 6, 7})
    with pytest.raises(UserError, match=r"4 steps in a row.*Step 3, before them, is saved.*--resume"):
        train(toy, tmp_path, save_every_steps=2, max_bad_steps=4)
    out = tmp_path / "out"
    assert max(p.name for p in out.glob("step_*")) == "step_000003.pt"
    monkeypatch.undo()
    train(toy, tmp_path, "--resume")  # without the fault the result is that of an undisturbed run
    assert losses(out) == losses(whole)
    assert_same_run(out, whole, 10)


def test_bad_steps_are_counted_in_a_row_only(toy, tmp_path, monkeypatch):
    spoil(monkeypatch, {2, 3, 5, 6, 8, 9})
    assert len(rows(train(toy, tmp_path, max_bad_steps=3), "bad_step")) == 6


def full_gpu(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_full_gpu_is_one_line_and_the_run_goes_on_from_that_step(toy, tmp_path, monkeypatch):
    whole = train(toy, tmp_path / "whole")
    spoil(monkeypatch, {7}, full_gpu)
    wanted = r"GPU memory in a step of 4 samples, \d+ tokens with padding: raise grad"
    with pytest.raises(UserError, match=wanted) as caught:
        train(toy, tmp_path)
    assert "\n" not in str(caught.value) and "--resume" in str(caught.value)
    assert (tmp_path / "out" / "step_000006.pt").exists()
    monkeypatch.undo()
    train(toy, tmp_path, "--resume")
    assert_same_run(tmp_path / "out", whole, 10)


def test_a_full_gpu_in_the_evaluation_says_what_to_lower(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("omni.eval.evaluate.generate", full_gpu)
    with pytest.raises(UserError, match="out of GPU memory in evaluation: lower eval_batch_size"):
        train(toy, tmp_path)  # before training
    monkeypatch.setattr(sft_omni, "before_training", lambda *_: 0.0)
    with pytest.raises(UserError, match="out of GPU memory in evaluation: lower eval_batch_size"):
        train(toy, tmp_path)
    assert (tmp_path / "out" / "step_000005.pt").exists()  # saved before the evaluation


def test_a_checkpoint_is_written_every_so_many_minutes(toy, tmp_path, whole_run):
    out = train(toy, tmp_path, save_every_minutes=1e-9, keep_checkpoints=20)
    assert len(list(out.glob("step_*"))) == 10
    shutil.rmtree(tmp_path / "out")
    assert len(list(train(toy, tmp_path, keep_checkpoints=20).glob("step_*"))) == 2
    assert_same(read(out / "step_000010.pt")["model"], read(whole_run / "step_000010.pt")["model"])


@pytest.fixture(scope="module")
def whole_run(toy, tmp_path_factory):
    return train(toy, tmp_path_factory.mktemp("whole"))
