"""Runs in forked child processes, which need not import torch again, so that many runs can be killed."""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from test_run import assert_same

import sft_omni
from omni.base.errors import UserError

# Measured values, which differ between runs that are otherwise the same.
CLOCK = {"seconds", "samples_per_s", "tokens_per_s", "gpu_mem_gb", "main_mem_gb"}


def start(arguments: list, log: Path, before=None) -> int:
    """Fork a run that first calls `before`; returns its process id. Its output is appended to `log`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(log, "a", encoding="utf-8") as file:
            sys.stdout = sys.stderr = file
            try:
                torch.set_num_threads(1)
                if before is not None:
                    before()
                sft_omni.main([str(a) for a in arguments])
                code = 0
            except UserError as err:
                print(f"error: {err}")
                code = 2
            except SystemExit as err:
                code = err.code
            except BaseException:
                traceback.print_exc()
            file.flush()
    finally:
        os._exit(code)


def wait(child: int, seconds: float = 60.0) -> int:
    """The exit code of a child, or minus the signal that ended it. AssertionError if it doesn't end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the run did not end within {seconds} s")


def rows(out: Path) -> list[dict]:
    """The metrics without measured times and memory. Every line must be complete JSON."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def assert_same_run(out: Path, whole: Path, step: int) -> None:
    """Weights, optimizer, sums, best and final system, and every line of the metrics: equal to the bit."""
    for name, keys in ((f"step_{step:06d}.pt", ("step", "sums", "model", "optimizer")),
                       ("omni_final.pt", ("thinker", "audio_encoder", "vision_encoder", "projectors"))):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (out, whole))
        for key in keys:
            assert_same(first[key], second[key], key)
    best, other = (torch.load(folder / "omni_best.pt", weights_only=True) for folder in (out, whole))
    best.pop("config"), other.pop("config")
    assert_same(best, other, "omni_best.pt")
    assert rows(out) == rows(whole)
    assert not list(out.glob("*.tmp"))


def next_try(out: Path) -> list[str]:
    """What a user passes next: --resume once there is a step checkpoint."""
    return ["--resume"] if list(out.glob("step_*.pt")) else []


def made_by_pytest(folder: Path) -> list[Path]:
    """The folders above `folder` that pytest made for this user alone."""
    return [path for path in folder.parents if path.name.startswith(("pytest-", "popen-"))]
