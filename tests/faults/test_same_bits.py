"""Workers, locale, time zone, terminal width and a closed stdout change no bit of a run's result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from harness import assert_same_run
from test_run import train


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    return train(toy, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers(toy, tmp_path, whole, workers):
    assert_same_run(train(toy, tmp_path, num_workers=workers), whole, 10)


def command(toy, folder: Path, prefix: str = "", suffix: str = "", **environment) -> None:
    """Run the command in a shell, in an odd environment."""
    line = f"{prefix} '{sys.executable}' sft_omni.py --config '{toy.write(folder)}' {suffix}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, timeout=120, text=True,
                          env={**os.environ, **environment}, capture_output=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]


ODD = {
    "a closed stdout": {"suffix": ">&-"}, "everything closed": {"suffix": ">&- 2>&- <&-"},
    "a full disk as stdout": {"suffix": "> /dev/full"}, "a pipe that closes": {"suffix": "| head -1"},
    "a locale of 1990": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                         "PYTHONIOENCODING": "ascii"},
    "a time zone and a narrow terminal": {"TZ": "Pacific/Chatham", "COLUMNS": "7", "LINES": "2",
                                          "LC_ALL": "tr_TR.UTF-8"}}


def test_the_environment(toy, tmp_path, whole, full):
    """Without --full only a combination of two, which broke runs before."""
    ODD["in short"] = ODD["a pipe that closes"] | ODD["a locale of 1990"]
    for name in ODD if full else ("in short",):
        folder = tmp_path / name.replace(" ", "_")
        command(toy, folder, **ODD[name])
        assert_same_run(folder / "out", whole, 10)
