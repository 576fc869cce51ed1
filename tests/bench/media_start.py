"""How soon runs with media start: very many pictures, features that are kept, decoder processes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sft_omni
from omni.data.decoding import Decoder
from omni.data.media_reader import MediaReader
from omni.train.features import FeatureStore
from tests.bench import machine, workload

PICTURES = 10 ** 6
DECODED = 2000  # media that are decoded, in two takes each


def first_step(config_path: str, device: str) -> dict[str, float]:
    """Seconds from the command to the end of the first step of a run with PICTURES pictures, and its memory.

    The pictures are hard links to copies of the shipped ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        shipped = [shutil.copy(path, folder) for path in Path("data/tiny/image_text/img").glob("train_*")]
        with open(Path(folder, "train.jsonl"), "w", encoding="utf-8") as file:
            for number in range(PICTURES):
                os.link(shipped[number % len(shipped)], f"{folder}/{number}.webp")
                file.write(json.dumps({"image": f"{number}.webp", "question": "What is it?",
                                       "answer": f"number {number}"}) + "\n")
        mix = {"pictures": {"weight": 1, "train": f"{folder}/train.jsonl",
                            "val": "data/tiny/image_text/val.jsonl"}}
        command = [sys.executable, "sft_omni.py", "--config", config_path,
                   f"--set=data_mix={json.dumps(mix)}", f"--set=save_dir={folder}/run",
                   f"--set=feature_cache_dir={folder}/cache", f"--set=device={device}",
                   "--set=log_every_steps=1", "--set=eval_samples=1", "--set=allow_outside_paths=true"]
        begun = time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        seen = {}
        for line in run.stdout:
            if line.startswith("source pictures: JSON lines"):
                seen["manifest"] = time.perf_counter() - begun
            if line.startswith("step 1 of"):
                seen["first step"] = time.perf_counter() - begun
                break
        memory = _memory_gb(run.pid)
        run.kill()
        run.wait()
    return {f"{PICTURES:,} pictures: seconds until they are listed": seen["manifest"],
            f"{PICTURES:,} pictures: seconds until the first step": seen["first step"],
            f"{PICTURES:,} pictures: memory, GB": memory}


def _memory_gb(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2 ** 20


def second_run(config_path: str, device: str) -> dict[str, float]:
    """Seconds that a run spends on features, and those of a second one with another mix."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        mix = {"text_only": 0.1, "image_text": 0.3, "audio_text": 0.4, "image_audio_text": 0.2}
        for name, more in (("first run", []), ("second run", ["--set", f"data_mix={json.dumps(mix)}"])):
            with machine.timed_parts({"features": (FeatureStore, "add")}) as spent:
                sft_omni.main(["--config", config_path, "--overwrite", "--set", f"save_dir={folder}/run",
                               "--set", f"feature_cache_dir={folder}/cache", "--set", f"device={device}",
                               "--set", "num_epochs=1", "--set", "samples_per_epoch=64",
                               "--set", "eval_samples=8", *more])
            figures[f"{name}: seconds for features"] = spent["features"]
    return figures


def decoders(config_path: str, device) -> dict[str, float]:
    """Seconds that 1, 2 and 4 processes need for DECODED pictures and clips, twice each."""
    reader = workload.build(config_path, device, cached=False, samples_a_source=1,
                            reader_class=MediaReader).dataset.collate.reader
    data = Path("data/tiny")
    images = sorted(map(str, (data / "image_text/img").glob("train_*")))[:DECODED // 2]
    clips = sorted(map(str, (data / "audio_text/audio").glob("train_*")))[:DECODED // 2]
    requests = [(method, path, take) for method, paths in (("pixels", images), ("mel", clips))
                for path in paths for take in (0, 1)]

    def decode(workers: int):
        return lambda: [None for _ in Decoder(reader, 20.0, workers).read(requests)]
    counts = (1, 2, 4)
    found = machine.median_seconds({str(n): decode(n) for n in counts}, device, 3)
    return {f"{len(requests):,} takes decoded by {n} processes, s": found[str(n)] for n in counts}
