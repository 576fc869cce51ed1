"""Read a manifest of so many lines in a process of its own: seconds, memory, time a draw (as JSON)."""

import json
import sys
import tempfile
import time
from pathlib import Path

from omni import manifest
from omni.device import peak_memory_gb
from omni.sampler import WeightedSampler


def main() -> None:
    lines, draws = int(sys.argv[1]), 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for i in range(lines):
                file.write(json.dumps({"messages": [{"role": "user", "content": f"What comes after {i}?"},
                                                    {"role": "assistant", "content": f"{i + 1}"}]}) + "\n")
        begun = time.perf_counter()
        samples = manifest.read(str(path)).samples
        sampler = WeightedSampler({"a": len(samples)}, {"a": 1.0}, 0)
        first = samples[sampler[0].index]
        started = time.perf_counter() - begun
        begun = time.perf_counter()
        for k in range(draws):
            sampler[k]
        a_draw = (time.perf_counter() - begun) / draws
    print(json.dumps({"seconds to the first sample": started, "microseconds a draw": a_draw * 1e6,
                      "peak memory, MB": peak_memory_gb() * 1024, "first sample": first.answer}))


if __name__ == "__main__":
    main()
