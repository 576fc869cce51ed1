"""The cases of the benchmark; each returns {name: figure}."""

import json
import statistics
import subprocess
import sys
import tempfile
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

import sft_omni
from omni.base import checkpoint
from omni.base.config import SFTConfig
from omni.base.config_file import load_config
from omni.base.device import autocast
from omni.data.batch import Batch
from omni.data.media_reader import MediaReader
from omni.eval.evaluate import Evaluator
from omni.model.load import load_system
from omni.train.features import FeatureStore
from omni.train.run_dir import RunDir
from omni.train.step_checkpoints import StepCheckpoints
from tests.bench import machine, media_start, workload
from tests.bench.padded import hidden
from tests.bench.training import Training

ROUNDS = 3


@dataclass
class Bench:
    """What the cases share: the config, the device, its ceiling, and workloads built on first use."""

    config_path: str
    device: torch.device
    ceiling: dict[str, float]

    @cached_property
    def cached(self) -> workload.Workload:
        return workload.build(self.config_path, self.device, cached=True)

    @cached_property
    def decoded(self) -> workload.Workload:
        return workload.build(self.config_path, self.device, cached=False)

    @property
    def peak(self) -> float:
        """Measured FLOP/s of a large matrix product in the precision that the run computes in."""
        bf16 = not isinstance(autocast(self.device, "auto"), type(autocast(self.device, "fp32")))
        return 1e12 * self.ceiling[f"matmul {'bfloat16' if bf16 else 'float32'}, TFLOP/s"]


def flops(w: workload.Workload, batch: Batch) -> float:
    """FLOPs of a step, padding excluded: 6 per weight and token, attention, 6 per weight and logit."""
    thinker, arch = w.model.thinker, w.model.thinker.arch
    weights = sum(p.numel() for layer in thinker.layers for p in layer.parameters() if p.dim() == 2)
    lengths = batch.layout.cu_seqlens.diff()[:-1].double()
    attention = 6 * arch.layers * arch.heads * arch.head_dim * float((lengths * (lengths + 1)).sum())
    total = 6 * weights * float(lengths.sum()) + attention
    total += 6 * batch.answer_tokens * arch.vocab_size * arch.width
    for token, projector in ((w.model.tokenizer.image, w.model.vision_projector),
                             (w.model.tokenizer.audio, w.model.audio_projector)):
        size = sum(p.numel() for p in projector.parameters() if p.dim() == 2)
        total += 6 * size * int((batch.ids == token).sum())
    return total


def step(bench: Bench) -> dict:
    """Training samples/s after warm-up and with decoded media, against the Trainer and a bound by FLOPs."""
    from tests.bench.baseline import seconds_a_step

    steps, warm = 20, 40  # after the warm-up, most batch sizes have occurred before
    train = Training(bench.cached, bench.device)
    times: dict[str, list[float]] = {"ours": [], "trainer": [], "dense": []}
    for _ in range(ROUNDS):
        times["ours"].append(train.seconds_a_step(steps, warm))
        times["trainer"].append(seconds_a_step(bench.decoded, bench.device, steps, warm=warm))
        times["dense"].append(seconds_a_step(bench.decoded, bench.device, 3, dense=True, warm=1))
    ours, trainer, dense = (statistics.median(times[name]) for name in ("ours", "trainer", "dense"))
    batches = [bench.cached.dataset[number].batches[0] for number in range(warm, steps + warm)]
    floor = statistics.median(flops(bench.cached, b) for b in batches) / bench.peak
    size = bench.cached.config.batch_size
    busy = {}
    if bench.device.type == "cuda":
        busy["share of a step that the GPU is busy"] = machine.gpu_seconds(
            lambda: train(0, steps)) / steps / ours
    return {"ours, samples/s": size / ours, "(a) transformers.Trainer, samples/s": size / trainer,
            "(b) the same, 512 tokens and a dense mask, samples/s": size / dense,
            "(c) floor of counted flops at the ceiling, samples/s": size / floor,
            "ours over (a)": trainer / ours, "ours over (b)": dense / ours,
            "(c) over ours": ours / floor} | busy


def encode(bench: Bench) -> dict:
    """Seconds of a step with cached features of frozen encoders, and of one that encodes its media."""
    steps = 20
    cached, decoded = (Training(w, bench.device) for w in (bench.cached, bench.decoded))
    work = {"with": lambda: cached(0, steps), "without": lambda: decoded(0, steps)}
    decoded(0, steps)  # decodes the media, so that no timed step does
    times = machine.median_seconds(work, bench.device, ROUNDS)
    lookups = machine.seconds(lambda: [bench.cached.dataset[n] for n in range(steps)], bench.device)
    return {"a step with features, s": times["with"] / steps,
            "a step that encodes, s": times["without"] / steps,
            "speed-up of a later epoch": times["without"] / times["with"],
            "share of a later epoch spent on fetching features and collating": lookups / times["with"]}


def generate(bench: Bench) -> dict:
    """Samples/s of generation in batches with the KV cache, against one sample at a time without it.

    The baseline uses flash attention, which is faster for a single row.
    """
    w = bench.cached
    evaluator = Evaluator(w.model, w.dataset.collate, w.config.eval_batch_size, w.config.max_new_tokens,
                          w.config.precision)
    samples = [s for held_out in w.mix.val.values()  # in the order in which the evaluator scores them
               for s in sorted(held_out[:256], key=lambda s: len(s.answer))]
    every_16th = samples[::16]
    w.model.eval()
    times = machine.median_seconds({
        "ours": lambda: [evaluator.answers(samples[i:i + w.config.eval_batch_size])
                         for i in range(0, len(samples), w.config.eval_batch_size)],
        "naive": lambda: [generate_naive(bench, w, sample) for sample in every_16th]}, bench.device, ROUNDS)
    ours, naive = len(samples) / times["ours"], len(every_16th) / times["naive"]
    return {"ours, samples/s": ours, "one at a time, no KV cache, samples/s": naive, "ratio": ours / naive}


@torch.no_grad()
@patch("omni.model.attention.MAX_SCORES", 0)
def generate_naive(bench: Bench, w: workload.Workload, sample) -> list[int]:
    """Greedy decoding that computes the whole sequence again for each token."""
    batch = w.dataset.collate([sample], prompts=True).to(bench.device)
    tokens: list[int] = []
    with autocast(bench.device, w.config.precision):
        embeds = w.model.embed(batch)[None, :int(batch.layout.cu_seqlens[1])]
        while len(tokens) < w.config.max_new_tokens:
            token = w.model.thinker.logits(hidden(w.model.thinker, embeds)[:, -1]).argmax(-1)
            if int(token) in w.model.tokenizer.ends:
                break
            tokens.append(int(token))
            embeds = torch.cat((embeds, w.model.thinker.embed_tokens(token)[:, None]), dim=1)
    return tokens


def run(bench: Bench) -> dict:
    """The seconds of a whole run of the config, by part, and an estimate for baseline (a).

    (a) would decode and encode media in each step and each evaluation instead of once, and take the Trainer's
    steps. Loading, generation and saving count the same in both. (a) has no evaluation before training.
    """
    from tests.bench.baseline import seconds_a_step

    undecoded = workload.build(bench.config_path, bench.device, cached=False, samples_a_source=None,
                               reader_class=MediaReader)
    config = undecoded.config
    before = [seconds_a_step(undecoded, bench.device, 40) for _ in range(ROUNDS)]
    parts = {"features": (FeatureStore, "add"), "evaluation": (Evaluator, "score"),
             "training": (sft_omni, "train_epoch"), "checkpoints of steps": (StepCheckpoints, "save"),
             "the whole system's file": (RunDir, "save_system")}
    with tempfile.TemporaryDirectory() as folder, machine.timed_parts(parts) as spent:
        whole = machine.seconds(lambda: sft_omni.main(
            ["--config", bench.config_path, "--set", f"save_dir={folder}", "--set",
             f"device={bench.device.type}"]), bench.device)
        rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        final = checkpoint.load(Path(folder, "omni_final.pt"), "omni", "")
    undecoded.model.load_state_dict(load_system(final, folder).state_dict())
    evaluation = config.num_epochs * machine.seconds(lambda: evaluate_undecoded(undecoded), bench.device)
    steps = spent.pop("training") - spent["checkpoints of steps"]
    trainer = statistics.median(before + [seconds_a_step(undecoded, bench.device, 40) for _ in range(ROUNDS)])
    steps_taken = max(row["step"] for row in rows)
    baseline = whole - spent["features"] - spent["evaluation"] - steps + evaluation + trainer * steps_taken
    return {f"{name}, s": seconds for name, seconds in spent.items()} | {
        "training steps, s": steps, "loading and all else, s": whole - steps - spent.total(),
        "the whole run, s": whole, "and as (a), s": baseline, "ours over (a)": baseline / whole,
        "a training step, s": steps / steps_taken, "as (a), s": trainer,
        "its evaluations, s": evaluation}


def evaluate_undecoded(w: workload.Workload) -> None:
    """An epoch's evaluation without cached features: media are decoded once and encoded at each use."""
    reader, collate = w.dataset.collate.reader, copy(w.dataset.collate)
    collate.reader = workload.DecodedReader(reader.vision, reader.audio, reader.seed)
    evaluator = Evaluator(w.model, collate, w.config.eval_batch_size, w.config.max_new_tokens,
                          w.config.precision)
    evaluator.score(w.mix.val)
    evaluator.score(w.mix.val, swapped=True)


def start(bench: Bench) -> dict:
    """Seconds and memory to read manifests of 10^3, 10^5 and 10^6 lines, and microseconds per draw.

    Then what runs with media do before their first step.
    """
    rows: dict[str, list[dict]] = {}
    for _ in range(ROUNDS):
        for lines in (10 ** 3, 10 ** 5, 10 ** 6):
            for how in ((), ("list",)):
                command = [sys.executable, "-m", "tests.bench.start", str(lines), *how]
                found = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.setdefault(f"{' '.join((f'{lines:,}', *how))}: ", []).append(json.loads(found.stdout))
    figures = {what + name: statistics.median(row[name] for row in found)
               for what, found in rows.items() for name in found[0] if name != "first sample"}
    return figures | media_start.decoders(bench.config_path, bench.device) \
        | media_start.second_run(bench.config_path, bench.device.type) \
        | media_start.first_step(bench.config_path, bench.device.type)


def memory(bench: Bench) -> dict:
    """Peak memory of a run of two short epochs (ten steps each) of each config for stage E."""
    figures = {}
    for path in tqdm(sorted(Path("configs").glob("omni_sft*.json")), desc="memory", leave=False):
        settings = {"device": bench.device.type, "num_epochs": 2, "log_every_steps": 1,
                    "samples_per_epoch": 10 * load_config(path, SFTConfig).batch_size}
        with tempfile.TemporaryDirectory() as folder:
            sets = [f"--set={key}={value}" for key, value in (settings | {"save_dir": folder}).items()]
            ran = subprocess.run([sys.executable, "sft_omni.py", "--config", str(path), *sets],
                                 capture_output=True, text=True)
            if ran.returncode:
                figures[path.name] = f"not run: {ran.stderr.strip().splitlines()[-1]}"
                continue
            rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        for where in ("main", "gpu") if bench.device.type == "cuda" else ("main",):
            figures[f"{path.name}, {where} memory, GB"] = max(row.get(f"{where}_mem_gb", 0) for row in rows)
    return figures
