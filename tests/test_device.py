"""Measurements of the machine."""

import subprocess
import sys

import numpy as np


def test_peak_memory_is_that_of_the_process_itself():
    ballast = np.ones(200_000_000)  # 1.6 GB in the parent process, which must not be counted
    code = "from omni.device import peak_memory_gb; print(peak_memory_gb())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0.05 < float(found.stdout) < ballast.nbytes / 2 ** 30
