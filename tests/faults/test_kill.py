"""A run that is killed at any moment and resumed ends with the same bits as one that is not."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from harness import assert_same_run, next_try, start, wait
from test_run import train

from omni.train.metrics import MetricsFile
from omni.train.step_checkpoints import StepCheckpoints

SETTINGS = {"save_every_steps": 2, "keep_checkpoints": 2}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    return train(toy, tmp_path_factory.mktemp("never_stopped"), **SETTINGS)


def test_sigkill_at_random_moments(toy, tmp_path, whole, full):
    """Some runs are killed several times; each attempt resumes the last one."""
    rng, wanted, kills, attempts = random.Random(0 if not full else time.time_ns()), 20 if full else 3, 0, 0
    begun = time.monotonic()
    assert wait(start(["--config", toy.write(tmp_path / "timed", **SETTINGS)], tmp_path / "log")) == 0
    lasts = time.monotonic() - begun
    while kills < wanted:
        folder = tmp_path / f"chain_{attempts}"
        config, ended = toy.write(folder, **SETTINGS), None
        while ended != 0:
            attempts += 1
            child = start(["--config", config, *next_try(folder / "out")], tmp_path / "log")
            if kills < wanted or rng.random() < 0.5:
                time.sleep(rng.uniform(0.02, lasts))
                os.kill(child, signal.SIGKILL)
            ended = wait(child)
            assert ended in (0, -signal.SIGKILL), (tmp_path / "log").read_text()[-2000:]
            kills += ended != 0
        assert_same_run(folder / "out", whole, 10)
    print(f"{kills} SIGKILLs survived in {attempts} attempts")


FILE_OPERATIONS = ((torch, "save"), (os, "fsync"), (os, "replace"), (os, "unlink"))


def die_at(number: int, counted: Path | None = None):
    """Count a run's file operations, and end the process at operation `number`, as a kill would."""
    done = 0

    def counting(operation):
        def call(*arguments, **options):
            nonlocal done
            if done == number:
                os._exit(9)
            done += 1
            if counted is not None:
                counted.write_text(str(done))
            return operation(*arguments, **options)
        return call
    for owner, name in FILE_OPERATIONS:
        setattr(owner, name, counting(getattr(owner, name)))


def test_death_at_every_file_operation(toy, tmp_path, whole, full):
    """The run is killed before each file operation in turn; without --full before three of them."""
    config, log = toy.write(tmp_path / "counted", **SETTINGS), tmp_path / "log"
    assert wait(start(["--config", config], log, lambda: die_at(-1, tmp_path / "count"))) == 0
    operations = int((tmp_path / "count").read_text())
    chosen = range(operations) if full else random.Random(1).sample(range(operations), 3)
    for number in chosen:
        folder = tmp_path / f"at_{number}"
        config = toy.write(folder, **SETTINGS)
        assert wait(start(["--config", config], log, lambda n=number: die_at(n))) == 9
        assert wait(start(["--config", config, *next_try(folder / "out")], log)) == 0, log.read_text()[-2000:]
        assert_same_run(folder / "out", whole, 10)
    print(f"{len(chosen)} deaths in the middle of file operations survived (of {operations} operations)")


def test_death_between_the_best_model_and_the_row_of_its_epoch(toy, tmp_path, whole):
    def die_before_the_row():
        add = MetricsFile.add
        MetricsFile.add = lambda self, event, **values: (
            os._exit(9) if event == "epoch" and values["epoch"] == 2 else add(self, event, **values))
    config = toy.write(tmp_path, **SETTINGS)
    assert wait(start(["--config", config], tmp_path / "log", die_before_the_row)) == 9
    assert wait(start(["--config", config, "--resume"], tmp_path / "log")) == 0
    assert_same_run(tmp_path / "out", whole, 10)


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def stepping(out: Path) -> bool:
    return (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_the_whole_group_saves_the_step_and_ends_within_10_s(toy, tmp_path, workers):
    """Ctrl-C in a terminal and SIGTERM of a cluster reach both the run and its workers."""
    settings = {"num_workers": workers, "samples_per_epoch": 4000, "num_epochs": 1, "save_every_steps": 10**6}
    child = start(["--config", toy.write(tmp_path, **settings)], tmp_path / "log", os.setsid)
    until(lambda: stepping(tmp_path / "out"))
    begun = time.monotonic()
    os.killpg(child, signal.SIGTERM if workers else signal.SIGINT)
    assert wait(child, 10) == 130, (tmp_path / "log").read_text()[-2000:]
    saved = int(next((tmp_path / "out").glob("step_*")).stem[5:])
    steps = (tmp_path / "out" / "metrics.jsonl").read_text().count('"step",')
    assert saved == steps and time.monotonic() - begun < 10
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_second_ctrl_c_ends_the_run_at_once_and_a_resume_is_the_same(toy, tmp_path, whole):
    def slow_saves():  # so that the second Ctrl-C comes during the save that the first one caused
        save = StepCheckpoints.save
        StepCheckpoints.save = lambda self, state, *rest: (
            (time.sleep(60) if state.step == 3 else None), save(self, state, *rest))
    config = toy.write(tmp_path, **SETTINGS)
    child = start(["--config", config], tmp_path / "log", slow_saves)
    until(lambda: (tmp_path / "out" / "step_000002.pt").exists())
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    assert wait(child, 3) == 130
    assert wait(start(["--config", config, "--resume"], tmp_path / "log")) == 0
    assert_same_run(tmp_path / "out", whole, 10)
