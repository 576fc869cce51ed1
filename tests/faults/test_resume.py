"""A resume prints what changed and refuses what would change the training. One run per folder."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from harness import assert_same_run, start, wait
from test_kill import stepping, until
from test_run import rows, train

from omni.base.errors import UserError


@pytest.fixture(scope="module")
def half(toy, tmp_path_factory) -> Path:
    """A folder whose run ended after one epoch of five steps."""
    return train(toy, tmp_path_factory.mktemp("half"), num_epochs=1)


@pytest.fixture
def folder(tmp_path, half) -> Path:
    shutil.copytree(half, tmp_path / "out")
    return tmp_path


FIXED = [{"batch_size": 2}, {"seed": 7}, {"samples_per_epoch": 12}, {"data_mix": {"text_only": 1.0}},
           {"augment_takes": 1}, {"max_length": 128}]


@pytest.mark.parametrize("changes", FIXED, ids=lambda c: next(iter(c)))
def test_a_change_of_a_fixed_key_is_shown_and_must_be_allowed(toy, folder, changes, capsys, full):
    key = next(iter(changes))
    with pytest.raises(UserError, match=rf'"{key}" .* -> .*--allow-change {key}') as caught:
        train(toy, folder, "--resume", **changes)
    assert "\n" not in str(caught.value) and (folder / "out" / "step_000005.pt").exists()
    if not full and key not in ("batch_size", "data_mix"):
        return
    train(toy, folder, "--resume", "--allow-change", key, **changes)
    assert f'"{key}"' in capsys.readouterr().out
    assert rows(folder / "out", "epoch")[-1]["epoch"] == 2


def test_other_keys_may_change_and_are_shown(toy, folder, capsys):
    train(toy, folder, "--resume", num_workers=1, log_every_steps=2, eval_samples=2, save_every_steps=7)
    said = capsys.readouterr().out
    for key in ("num_workers", "log_every_steps", "eval_samples", "num_epochs"):
        assert f'changed since step_000005.pt: "{key}"' in said


@pytest.mark.parametrize("changed", ["train", "val", "part"])
def test_changed_files_are_noticed_by_size_and_hash(toy, folder, changed):
    data, key = folder / "data", "data_mix"
    shutil.copytree(toy.root / "data", data)
    parts = {}
    if changed == "part":
        key = "vision_ckpt"
        content = Path(toy.config[key]).read_bytes()
        parts[key] = str(folder / "vision.pt")
        toy.model()  # as a retrained part: same architecture, other weights
        from test_mismatch import changed_part
        changed_part(toy, folder, key, lambda c: c["state"]["norm.weight"].mul_(2) if "norm.weight"
                     in c["state"] else next(iter(c["state"].values())).mul_(2))
        (folder / "part.pt").rename(folder / "vision.pt")
        assert content != (folder / "vision.pt").read_bytes()
    else:
        manifest = data / "text_only" / f"{changed}.jsonl"
        manifest.write_text(manifest.read_text().replace("plus", "PLUS", 1))
    arguments = ("--resume", "--allow-change", "data_dir")
    with pytest.raises(UserError, match=f"sha256.* -> .*sha256.*--allow-change {key}"):
        train(toy, folder, *arguments, data_dir=str(data), **parts)
    train(toy, folder, *arguments, "--allow-change", key, data_dir=str(data), **parts)


def test_a_sample_that_became_unusable_is_noticed(toy, folder):
    data = folder / "data"
    shutil.copytree(toy.root / "data", data)
    (data / "image_text" / "train_1.png").write_text("<html>404</html>")
    with pytest.raises(UserError, match="12 samples.* -> .*11 samples"):
        train(toy, folder, "--resume", "--allow-change", "data_dir", data_dir=str(data), max_skipped=0.5)


def test_allow_change_with_a_wrong_key_or_without_resume_is_one_line(toy, folder):
    with pytest.raises(UserError, match="--resume"):
        train(toy, folder, "--overwrite", "--allow-change", "batch_size")
    with pytest.raises(UserError, match="batchsize.*no such key.*batch_size"):
        train(toy, folder, "--resume", "--allow-change", "batchsize")


def test_a_resume_on_another_number_of_workers_keeps_the_bits(toy, tmp_path):
    whole, out = train(toy, tmp_path / "whole"), train(toy, tmp_path, num_workers=1, save_every_steps=3)
    for later in ("step_000009.pt", "step_000010.pt"):
        (out / later).unlink(missing_ok=True)
    shutil.copy(whole / "step_000005.pt", out)
    train(toy, tmp_path, "--resume", num_workers=4)
    assert_same_run(out, whole, 10)


def test_a_second_run_is_refused_with_the_holder_and_the_lock_of_a_killed_run_is_free(toy, tmp_path):
    settings = {"samples_per_epoch": 4000, "num_epochs": 1}
    config = toy.write(tmp_path, **settings)
    child = start(["--config", config], tmp_path / "log")
    until(lambda: stepping(tmp_path / "out"))
    for flag in ([], ["--resume"], ["--overwrite"]):
        log = tmp_path / f"second{''.join(flag)}"
        assert wait(start(["--config", config, *flag], log)) == 2
        assert f"error: {tmp_path / 'out'}: process {child} on " in log.read_text()
    assert stepping(tmp_path / "out")
    os.kill(child, signal.SIGKILL)
    wait(child)
    train(toy, tmp_path, "--overwrite", num_epochs=1)
