"""Runs that are followed elsewhere: what wandb and trackio get, and what happens when they fail."""

import importlib
import sys

import pytest

import sft_omni
from omni.base.errors import UserError

FAKE = '''
"""Has the part of wandb's and trackio's API that is used, and keeps what it gets."""
import pathlib

BEGUN, LOGGED, FAIL = [], [], []

class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data

class Image:
    def __init__(self, picture):
        self.size = picture.size

class Audio:
    def __init__(self, wave, sample_rate):
        self.seconds = len(wave) / sample_rate

class Run:
    def define_metric(self, name, step_metric=None):
        pass

    def log(self, row, step=None):
        if "log" in FAIL:
            raise ConnectionError("no network")
        LOGGED.append((row.get("step", step), row))

def init(**options):
    if "init" in FAIL:
        raise RuntimeError("No API key configured.")
    BEGUN.append(options)
    if "dir" in options:
        number = options.get("id", f"id{len(BEGUN)}")
        folder = pathlib.Path(options["dir"], "wandb", f"run-20260101_00000{len(BEGUN)}-{number}")
        folder.mkdir(parents=True)
    return Run()
'''


@pytest.fixture(params=["wandb", "trackio"])
def package(request, tmp_path, monkeypatch):
    """A package of that name that stands in for the real one."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / f"{request.param}.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    yield importlib.import_module(request.param)
    sys.modules.pop(request.param)


def train(toy, tmp_path, package, *arguments: str, **changes) -> None:
    path = toy.write(tmp_path, **{"num_epochs": 1, "eval_samples": 4, "track": package.__name__, **changes})
    sft_omni.main(["--config", path, *arguments])


def test_a_run_is_followed_with_config_metrics_and_samples(package, toy, tmp_path):
    train(toy, tmp_path, package)
    (begun,), rows = package.BEGUN, package.LOGGED
    assert begun["name"] == "out" and begun["config"]["batch_size"] == 4
    assert [step for step, row in rows if "step/loss" in row] == [1, 2, 3, 4, 5]
    (epoch,) = (row for step, row in rows if "epoch/image_qa" in row and step == 5)
    assert "epoch/swapped/image_qa" in epoch and "epoch/counts/image_qa" in epoch
    (table,) = (row["samples"] for _, row in rows if "samples" in row)
    assert table.columns == ["set", "question", "reference", "answer", "right", "image", "audio"]
    pictured = [row for row in table.data if row[5] is not None]
    heard = [row for row in table.data if row[6] is not None]
    assert pictured[0][5].size == (48, 40) and heard[0][6].seconds > 0.2
    assert {row[0].split(",")[0] for row in table.data} == {*toy.config["data_mix"]}


def test_a_resumed_run_goes_on_where_it_was(package, toy, tmp_path):
    train(toy, tmp_path, package)
    train(toy, tmp_path, package, "--resume", num_epochs=2)
    train(toy, tmp_path, package, "--overwrite")
    first, resumed, anew = package.BEGUN
    assert resumed["resume"] == "allow" and "resume" not in first and "resume" not in anew
    assert resumed.get("id") == ("id1" if package.__name__ == "wandb" else None) and "id" not in anew
    assert [step for step, row in package.LOGGED if "step/loss" in row] == [*range(1, 11), *range(1, 6)]


def test_a_package_that_fails_during_the_run_is_named_once(package, toy, tmp_path, capsys):
    package.FAIL.append("log")
    train(toy, tmp_path, package)
    assert capsys.readouterr().out.count(f"{package.__name__} failed (ConnectionError: no network)") == 1
    assert (tmp_path / "out" / "omni_final.pt").exists()


def test_a_package_that_does_not_start_or_is_not_there_is_a_user_error(package, toy, tmp_path, monkeypatch):
    package.FAIL.append("init")
    with pytest.raises(UserError, match=f'"track": {package.__name__} did not start .No API key'):
        train(toy, tmp_path, package)
    monkeypatch.setattr("omni.base.config_file.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install {package.__name__}"):
        train(toy, tmp_path, package, thinker_ckpt="nowhere.pt")  # before anything is loaded


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_packages_take_it_offline(name, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    real = pytest.importorskip(name, reason=f"{name} is not installed")
    train(toy, tmp_path, real)
    real.finish()
    kept = [path.read_bytes()[:4] for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert b"\x89PNG" in kept and b"RIFF" in kept
