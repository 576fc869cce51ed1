"""Measures in a separate process how a manifest of LINES lines is read: seconds, memory, time per draw.

    python -m tests.bench.start LINES          as a run reads it
    python -m tests.bench.start LINES list     the baseline: all lines parsed into a list, unchecked
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from omni.base.device import peak_memory_gb
from omni.data import manifest
from omni.data.sampler import WeightedSampler


def main() -> None:
    lines, draws = int(sys.argv[1]), 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for i in range(lines):
                file.write(json.dumps({"messages": [{"role": "user", "content": f"What comes after {i}?"},
                                                    {"role": "assistant", "content": f"{i + 1}"}]}) + "\n")
        begun = time.perf_counter()
        if sys.argv[2:] == ["list"]:
            with open(path, encoding="utf-8") as file:
                entries = [json.loads(line) for line in file]
            first = random.Random(0).choice(entries)["messages"][-1]["content"]
            print_result(first, time.perf_counter() - begun)
            return
        samples = manifest.read(str(path)).samples
        sampler = WeightedSampler({"a": len(samples)}, {"a": 1.0}, 0)
        first = samples[sampler[0].index]
        started = time.perf_counter() - begun
        begun = time.perf_counter()
        for k in range(draws):
            sampler[k]
        a_draw = (time.perf_counter() - begun) / draws
    print_result(first.answer, started, {"microseconds a draw": a_draw * 1e6})


def print_result(first: str, started: float, more: dict[str, float] | None = None) -> None:
    print(json.dumps({"seconds to the first sample": started, "peak memory, MB": peak_memory_gb() * 1024,
                      **(more or {}), "first sample": first}))


if __name__ == "__main__":
    main()
