"""The cases of the benchmark; each returns {what: figure}."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from omni.batch import IGNORE, Batch
from omni.config import ThinkerArch
from omni.device import autocast
from omni.evaluate import Evaluator
from omni.thinker import Thinker
from tests.bench import machine, workload

ROUNDS = 3


@dataclass
class Bench:
    """What the cases share: the config, the device, its ceiling, and workloads built when first asked for."""

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


def train(w: workload.Workload, device: torch.device, first: int, count: int) -> None:
    """The steps first .. first + count - 1, as the loop of `sft_omni.py` takes them."""
    trained = [p for p in w.model.parameters() if p.requires_grad]
    optimizer = w.optimizer()
    w.model.train()
    for number in range(first, first + count):
        step = w.dataset[number]
        answer_tokens = int(step.counts[:, 1].sum())
        for batch in step.batches:
            with autocast(device, w.config.precision):
                loss, _, _ = w.model(batch.to(device))
            (loss / answer_tokens).backward()
        torch.nn.utils.clip_grad_norm_(trained, w.config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def flops(w: workload.Workload, batch: Batch) -> float:
    """Of a step on true tokens alone: 6 a weight and token, attention's products, 6 a weight and logit."""
    thinker, arch = w.model.thinker, w.model.thinker.arch
    weights = sum(p.numel() for layer in thinker.layers for p in layer.parameters() if p.dim() == 2)
    lengths = batch.lengths.float()
    attention = 6 * arch.layers * arch.heads * arch.head_dim * float((lengths * (lengths + 1)).sum())
    answers = int((batch.labels != IGNORE).sum())
    total = 6 * weights * float(lengths.sum()) + attention + 6 * answers * arch.vocab_size * arch.width
    for token, projector in ((w.model.tokenizer.image, w.model.vision_projector),
                             (w.model.tokenizer.audio, w.model.audio_projector)):
        size = sum(p.numel() for p in projector.parameters() if p.dim() == 2)
        total += 6 * size * int((batch.input_ids == token).sum())
    return total


def step(bench: Bench) -> dict:
    """Training samples/s, steady state, media decoded, against the Trainer and the floor of the flops."""
    from tests.bench.baseline import seconds_a_step

    steps = 20
    train(bench.cached, bench.device, 0, 3)
    times: dict[str, list[float]] = {"ours": [], "trainer": [], "dense": []}
    for number in range(ROUNDS):
        work = machine.seconds(lambda n=number: train(bench.cached, bench.device, n * steps, steps),
                               bench.device)
        times["ours"].append(work / steps)
        times["trainer"].append(seconds_a_step(bench.decoded, bench.device, steps))
    times["dense"].append(seconds_a_step(bench.decoded, bench.device, 3, dense=True))
    ours, trainer, dense = (statistics.median(times[name]) for name in ("ours", "trainer", "dense"))
    batches = [bench.cached.dataset[number].batches[0] for number in range(steps)]
    floor = statistics.mean(flops(bench.cached, b) for b in batches) / bench.peak
    size = bench.cached.config.batch_size
    return {"ours, samples/s": size / ours, "(a) transformers.Trainer, samples/s": size / trainer,
            "(b) the same, 512 tokens and a dense mask, samples/s": size / dense,
            "(c) floor of counted flops at the ceiling, samples/s": size / floor,
            "ours over (a)": trainer / ours, "ours over (b)": dense / ours, "(c) over ours": ours / floor}


def encode(bench: Bench) -> dict:
    """Frozen features: what the first epoch pays, and what every epoch would pay without them."""
    steps = 20
    work = {"with": lambda: train(bench.cached, bench.device, 0, steps),
            "without": lambda: train(bench.decoded, bench.device, 0, steps)}
    train(bench.decoded, bench.device, 0, steps)  # decodes
    times = machine.by_turns(work, bench.device, ROUNDS)
    lookups = machine.seconds(lambda: [bench.cached.dataset[n] for n in range(steps)], bench.device)
    return {"a step with features, s": times["with"] / steps,
            "a step that encodes, s": times["without"] / steps,
            "speed-up of a later epoch": times["without"] / times["with"],
            "share of a later epoch spent on fetching features and collating": lookups / times["with"]}


def generate(bench: Bench) -> dict:
    """Evaluation samples/s in batches with the KV cache, against one at a time without."""
    w = bench.cached
    evaluator = Evaluator(w.model, w.dataset.collate, w.config.eval_batch_size, w.config.max_new_tokens,
                          w.config.precision)
    samples = [s for held_out in w.mix.val.values()  # in the order in which the evaluator scores them
               for s in sorted(held_out[:256], key=lambda s: len(s.answer))]
    few = samples[::16]
    w.model.eval()
    times = machine.by_turns({
        "ours": lambda: [evaluator.answers(samples[i:i + w.config.eval_batch_size])
                         for i in range(0, len(samples), w.config.eval_batch_size)],
        "naive": lambda: [generate_naive(bench, w, sample) for sample in few]}, bench.device, ROUNDS)
    ours, naive = len(samples) / times["ours"], len(few) / times["naive"]
    return {"ours, samples/s": ours, "one at a time, no KV cache, samples/s": naive, "ratio": ours / naive}


@torch.no_grad()
def generate_naive(bench: Bench, w: workload.Workload, sample) -> list[int]:
    """Greedy decoding that reads everything again for each token."""
    batch = w.dataset.collate([sample], prompt_only=True).to(bench.device)
    tokens: list[int] = []
    with autocast(bench.device, w.config.precision):
        embeds = w.model.embed(batch)
        while len(tokens) < w.config.max_new_tokens:
            token = w.model.thinker.logits(w.model.thinker.hidden(embeds)[:, -1]).argmax(-1)
            if int(token) == w.model.tokenizer.end:
                break
            tokens.append(int(token))
            embeds = torch.cat((embeds, w.model.thinker.embed_tokens(token)[:, None]), dim=1)
    return tokens


def run(bench: Bench) -> dict:
    """A run from start to `omni_final.pt`, an epoch of a tenth of the samples, and where its seconds go.

    From these parts follows the whole default run. As (a) it would encode in each step instead of once, and
    take the Trainer's steps; loading, evaluation and saving are ours in both.
    """
    from tests.bench.baseline import seconds_a_step

    config = bench.cached.config
    samples = (config.samples_per_epoch or 16_000) // 10
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, "sft_omni.py", "--config", bench.config_path, "--set", f"save_dir={folder}",
                  "--set", f"device={bench.device.type}"]
        start = time.perf_counter()
        subprocess.run([*script, "--set", "num_epochs=1", "--set", f"samples_per_epoch={samples}"],
                       check=True, capture_output=True)
        total = time.perf_counter() - start
        rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    dry = [machine.seconds(lambda gb=gb: subprocess.run(
        [*script, "--dry-run", "--set", f"feature_cache_gb={gb}"], check=True, capture_output=True),
        bench.device) for gb in (config.feature_cache_gb, 0)]
    rate = statistics.median(row["samples_per_s"] for row in rows if row["event"] == "step")
    trained = next(row["seconds"] for row in rows if row["event"] == "epoch")  # since the start
    before, after, features = trained - samples / rate, total - trained, dry[0] - dry[1]
    draws = 10 * samples * config.num_epochs
    whole = before + draws / rate + after * config.num_epochs
    trainer = seconds_a_step(bench.decoded, bench.device, 20) * draws / config.batch_size
    baseline = whole - features - draws / rate + trainer
    return {"run of a tenth of an epoch, s": total,
            "loading, features, evaluation before training, s": before, "of them features, s": features,
            "training steps, s": samples / rate, "evaluation, the whole system's file, s": after,
            "so the default run takes, s": whole, "and as (a), s": baseline,
            "ours over (a)": baseline / whole}


def start(bench: Bench) -> dict:
    """Seconds and memory to read manifests of 10^3, 10^5 and 10^6 lines, and microseconds a draw."""
    rows: dict[str, list[dict]] = {}
    for _ in range(ROUNDS):
        for lines in (10 ** 3, 10 ** 5, 10 ** 6):
            for how in ((), ("list",)):
                command = [sys.executable, "-m", "tests.bench.start", str(lines), *how]
                found = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.setdefault(f"{' '.join((f'{lines:,}', *how))}: ", []).append(json.loads(found.stdout))
    return {what + name: statistics.median(row[name] for row in found)
            for what, found in rows.items() for name in found[0] if name != "first sample"}


def memory(bench: Bench) -> dict:
    """Peak memory of a dry run of each config for stage E."""
    figures = {}
    for path in sorted(Path("configs").glob("omni_sft*.json")):
        found = subprocess.run([sys.executable, "sft_omni.py", "--config", str(path), "--dry-run", "--set",
                                f"device={bench.device.type}"], capture_output=True, text=True)
        last = found.stdout.strip().splitlines()[-1:] or found.stderr.strip().splitlines()[-1:]
        figures[path.name] = last[0].rpartition("peak memory ")[2] if found.returncode == 0 else "not run"
    return figures


def base(bench: Bench) -> dict:
    """A Thinker of Qwen3-0.6B's shape with random weights: tokens/s and the share of the ceiling (MFU)."""
    arch = ThinkerArch(vocab_size=151_936, width=1024, layers=28, heads=16, kv_heads=8, head_dim=128,
                       mlp_width=3072, rope_theta=1e6)
    if bench.device.type != "cuda":
        return {"Qwen3-0.6B's shape": "needs a GPU"}
    rows, length, answers = 8, 1000, 200
    thinker = Thinker(arch).to(bench.device)
    optimizer = torch.optim.AdamW(thinker.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(arch.vocab_size, (rows, length), device=bench.device)

    def one_step() -> None:
        with autocast(bench.device, "bf16"):
            hidden = thinker.hidden(thinker.embed_tokens(ids))[:, -answers - 1:-1]
            logits = thinker.logits(hidden).float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -answers:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    one_step()
    five = machine.by_turns({"ours": lambda: [one_step() for _ in range(5)]}, bench.device, ROUNDS)
    took = five["ours"] / 5
    weights = sum(p.numel() for layer in thinker.layers for p in layer.parameters() if p.dim() == 2)
    work = 6 * rows * (length * weights + answers * arch.vocab_size * arch.width
                       + arch.layers * arch.heads * arch.head_dim * length ** 2)
    return {"tokens/s": rows * length / took, "MFU": work / took / bench.peak,
            "peak memory, GB": torch.cuda.max_memory_allocated() / 2 ** 30}
