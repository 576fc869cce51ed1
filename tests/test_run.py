"""The whole run on toy data, as users start it: outputs, resuming to the same bits, errors, stopping."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_user_error

import sft_omni
from omni.base import checkpoint

STEP_KEYS = {"event", "step", "epoch", "loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s",
             "gpu_mem_gb"}
EPOCH_KEYS = {"event", "epoch", "loss", "val_loss", "text_acc", "image_qa", "audio_wer", "seconds"}
GOLDEN = Path(__file__).parent / "golden.json"


def train(toy, folder: Path, *arguments: str, **changes) -> Path:
    """A run in this process; returns its output folder."""
    sft_omni.main(["--config", toy.write(folder, **changes), *arguments])
    return folder / "out"


def rows(out: Path, event: str) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["event"] == event]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out, "step")]


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a, b, where="") -> None:
    """Equal types and bits, also within containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b, where


def assert_same_end(a: Path, b: Path, step: int = 10) -> None:
    """Two runs ended with the same weights, optimizer and sums."""
    first, second = read(a / f"step_{step:06d}.pt"), read(b / f"step_{step:06d}.pt")
    for key in ("step", "sums", "model", "optimizer"):
        assert_same(first[key], second[key], key)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    """An uninterrupted run of 2 epochs of 5 steps, all of its step checkpoints kept."""
    return train(toy, tmp_path_factory.mktemp("whole"), save_every_steps=1, keep_checkpoints=20)


def test_a_run_writes_the_specified_files_and_metrics(whole):
    assert {"config.json", "metrics.jsonl", "omni_final.pt", "omni_best.pt"} <= set(os.listdir(whole))
    assert json.loads((whole / "config.json").read_text())["batch_size"] == 4
    steps, epochs = rows(whole, "step"), rows(whole, "epoch")
    assert [row["step"] for row in steps] == list(range(1, 11))
    assert all(STEP_KEYS <= row.keys() for row in steps)
    assert [row["epoch"] for row in epochs] == [1, 2] and all(EPOCH_KEYS <= row.keys() for row in epochs)
    assert all(0 <= row[key] <= 1 for row in epochs for key in ("text_acc", "image_qa"))
    assert not list(whole.glob("*.tmp"))


def test_epoch_loss_is_the_sum_over_answer_tokens_over_their_number(toy, tmp_path):
    out = train(toy, tmp_path, num_epochs=1, learning_rate=1e-9, projector_learning_rate=1e-9)
    sums = read(out / "step_000005.pt")["sums"]
    epoch = rows(out, "epoch")[0]
    assert epoch["loss"] == pytest.approx(float(sums["loss"]) / sums["tokens"], rel=1e-6)
    # The mean of the steps' means differs: it gives too much weight to steps with few answer tokens.
    assert epoch["loss"] != pytest.approx(sum(losses(out)) / 5, rel=1e-7)


def test_the_newest_checkpoints_are_kept(toy, tmp_path):
    out = train(toy, tmp_path, save_every_steps=1, keep_checkpoints=3)
    assert sorted(p.name for p in out.glob("step_*")) == ["step_000008.pt", "step_000009.pt",
                                                          "step_000010.pt"]


def test_later_checkpoints_of_an_earlier_run_do_not_displace_new_ones(toy, tmp_path, whole):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    train(toy, tmp_path, "--resume", str(out / "step_000003.pt"), num_epochs=1, save_every_steps=1,
          keep_checkpoints=2)
    assert [p.name for p in sorted(out.glob("step_*"))] == ["step_000004.pt", "step_000005.pt"]


@pytest.mark.parametrize("step", [1, 3, 5, 6, 9, 10])  # 5 steps an epoch
def test_resume_equals_uninterrupted_to_the_bit(toy, tmp_path, whole, step):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / f"step_{step:06d}.pt", out)
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (out / "metrics.jsonl").write_text("\n".join(kept) + "\n" + '{"event": "step", "st')  # cut by a kill
    train(toy, tmp_path, "--resume", keep_checkpoints=20)
    assert losses(out) == losses(whole)
    assert_same_end(out, whole)
    assert_same(read(out / "omni_final.pt")["thinker"], read(whole / "omni_final.pt")["thinker"])
    for row, other in zip(rows(out, "epoch"), rows(whole, "epoch"), strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


def test_the_best_val_loss_so_far_survives_a_resume(toy, tmp_path):
    still = {"learning_rate": 1e-9, "projector_learning_rate": 1e-9}
    out = train(toy, tmp_path, num_epochs=1, **still)
    best = (out / "omni_best.pt").read_bytes()
    content = read(out / "step_000005.pt")
    content["model"]["thinker.norm.weight"] *= 100  # so the second epoch is surely worse
    checkpoint.save(out / "step_000005.pt", "step", content)
    train(toy, tmp_path, "--resume", **still)
    first, second = rows(out, "epoch")
    assert second["val_loss"] > first["val_loss"]
    assert (out / "omni_best.pt").read_bytes() == best


def test_a_broken_newest_checkpoint_is_ignored(toy, tmp_path, whole):
    out = tmp_path / "out"
    out.mkdir()
    for step in (3, 4):
        shutil.copy(whole / f"step_{step:06d}.pt", out)
    (out / "step_000004.pt").write_bytes((out / "step_000004.pt").read_bytes()[:1000])
    train(toy, tmp_path, "--resume")
    assert_same_end(out, whole)


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 2}, {"freeze_encoders": False}])
def test_same_seed_same_bits(toy, tmp_path, changes):
    first, second = train(toy, tmp_path / "a", **changes), train(toy, tmp_path / "b", **changes)
    assert_same_end(first, second)
    other = train(toy, tmp_path / "c", seed=1, **changes)
    assert losses(other) != losses(first)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_micro_batches_change_the_curve_by_rounding_only(toy, tmp_path, whole, parts):
    out = train(toy, tmp_path, gradient_accumulation_steps=parts)
    for row, other in zip(rows(out, "step"), rows(whole, "step"), strict=True):
        assert (row["loss"], row["grad_norm"]) == pytest.approx((other["loss"], other["grad_norm"]), rel=2e-3)


def test_workers_change_no_bit(toy, tmp_path, whole):
    assert_same_end(train(toy, tmp_path, num_workers=2), whole)


def test_the_feature_cache_changes_the_loss_by_rounding_only(toy, tmp_path, whole):
    without = losses(train(toy, tmp_path, feature_cache_gb=0))
    assert without == pytest.approx(losses(whole), rel=2e-3)


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"freeze_encoders": False, "precision": "bf16"}])
def test_a_run_in_bf16_ends(toy, tmp_path, whole, changes):
    out = train(toy, tmp_path, **changes)
    assert losses(out)[0] == pytest.approx(losses(whole)[0], rel=0.03) and len(rows(out, "epoch")) == 2


@pytest.mark.gpu
def test_a_run_on_the_gpu_ends_near_the_cpu(toy, tmp_path, whole):
    out = train(toy, tmp_path, device="cuda", precision="auto")
    assert losses(out) == pytest.approx(losses(whole), rel=0.05)


@pytest.mark.parametrize("changes", [{"feature_cache_gb": 0}, {"freeze_encoders": False}, {}])
def test_an_unreadable_picture_is_skipped_and_named(toy, tmp_path, capsys, changes):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    (data / "image_text" / "train_3.png").write_text("<html>404</html>")
    (data / "audio_text" / "val_0.ogg").write_bytes(b"OggS")
    train(toy, tmp_path, data_dir=str(data), max_skipped=0.5, **changes)
    said = capsys.readouterr().out
    assert "source image_text: 1 samples skipped; 1x not an image" in said
    assert "source audio_text: 1 samples skipped; 1x not readable as sound" in said


def test_too_many_unreadable_media_end_the_run_with_one_line(toy, tmp_path, command):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    for picture in (data / "image_text").glob("*.png"):
        picture.write_text("<html>404</html>")
    done = command("sft_omni.py", "--config", toy.write(tmp_path, data_dir=str(data)))
    assert_user_error(done, "image_text", "max_skipped")


def test_plain_text_and_system_turns_train_and_are_scored(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    lines = ['{"text": "All of this is trained on."}', json.dumps({"messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"}]})] * 3
    for split in ("train", "val"):
        (data / "text_only" / f"{split}.jsonl").write_text("\n".join(lines))
    out = train(toy, tmp_path, data_dir=str(data), num_epochs=1)
    assert rows(out, "epoch")[0]["text_acc"] >= 0


def test_a_folder_that_holds_a_run_is_refused(toy, tmp_path, whole, command):
    shutil.copytree(whole, tmp_path / "out")
    done = command("sft_omni.py", "--config", toy.write(tmp_path))
    assert_user_error(done, "--resume", "--overwrite")
    train(toy, tmp_path, "--overwrite", num_epochs=1)
    assert [row["epoch"] for row in rows(tmp_path / "out", "epoch")] == [1]
    assert [p.name for p in (tmp_path / "out").glob("step_*")] == ["step_000005.pt"]


def test_overwrite_deletes_nothing_before_the_new_run_can_start(toy, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(Exception, match="no such checkpoint"):
        train(toy, tmp_path, "--overwrite", thinker_ckpt="nowhere.pt")
    assert (tmp_path / "out" / "omni_final.pt").exists()


@pytest.mark.parametrize("arguments, word", [(["--resume"], "--resume"), (["--resume", "nowhere.pt"],
                                                                          "nowhere.pt")])
def test_nothing_to_resume_is_one_line(toy, tmp_path, command, arguments, word):
    assert_user_error(command("sft_omni.py", "--config", toy.write(tmp_path), *arguments), word)


@pytest.mark.parametrize("changes", [{"thinker_ckpt": "nowhere.pt"}, {"data_dir": "nowhere"}])
def test_a_missing_file_is_named_and_no_folder_is_created(toy, tmp_path, command, changes):
    assert_user_error(command("sft_omni.py", "--config", toy.write(tmp_path, **changes)), "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_save_dir_that_cannot_be_created_is_one_line(toy, tmp_path, command):
    (tmp_path / "file").write_text("")
    changes = {"save_dir": str(tmp_path / "file" / "out")}
    assert_user_error(command("sft_omni.py", "--config", toy.write(tmp_path, **changes)), "out")


def test_dry_run_tries_every_source_and_writes_nothing(toy, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in toy.root.rglob("*")}
    out = train(toy, tmp_path, "--dry-run")
    said = capsys.readouterr().out
    assert all(f"dry run of {name}" in said for name in toy.config["data_mix"])
    assert not out.exists() and {p: p.stat().st_mtime_ns for p in toy.root.rglob("*")} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_can_be_resumed_and_ends_as_if_never_stopped(toy, tmp_path, number):
    config = toy.write(tmp_path, samples_per_epoch=400, num_epochs=1, eval_samples=1)
    process = subprocess.Popen([sys.executable, "sft_omni.py", "--config", config], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics, deadline = tmp_path / "out" / "metrics.jsonl", time.time() + 60
    while process.poll() is None and time.time() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert 3 <= int(next((tmp_path / "out").glob("step_*")).stem[5:]) < 100
    train(toy, tmp_path, "--resume", samples_per_epoch=400, num_epochs=1, eval_samples=1)
    whole = train(toy, tmp_path / "whole", samples_per_epoch=400, num_epochs=1, eval_samples=1)
    assert_same_end(tmp_path / "out", whole, 100)


def test_chat_answers_and_names_a_bad_picture(toy, tmp_path, whole, command):
    picture = toy.root / "data" / "image_text" / "val_0.png"
    ask = ("-m", "omni.chat", "--ckpt", whole / "omni_final.pt")
    done = command(*ask, "--image", picture, "What color?")
    assert done.returncode == 0, done.stderr
    assert_user_error(command(*ask, "--image", tmp_path / "nowhere.png", "What color?"), "nowhere.png")
    assert_user_error(command("-m", "omni.chat", "--ckpt", whole / "step_000010.pt", "hi"), "omni")


def test_golden_losses(toy, tmp_path):
    """The losses of 20 steps. If a change is meant to move them, run UPDATE_GOLDEN=1 python -m pytest
    tests/test_run.py -k golden, and say why in the commit."""
    found = losses(train(toy, tmp_path, samples_per_epoch=40))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps([round(loss, 6) for loss in found], indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 20 and found == pytest.approx(golden, rel=1e-3)
