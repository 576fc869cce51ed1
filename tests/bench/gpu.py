"""All that is to be known of a GPU, in one call of some minutes: checks first, then figures.

    python -m tests.bench --gpu --json gpu.json

On a CPU (`--device cpu`) it runs to its end on tiny shapes; the figures mean nothing there.
"""

import contextlib
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

import sft_omni
from omni.base import checkpoint
from omni.base.config import PROJECTIONS
from omni.base.device import autocast, gpu_memory_gb
from omni.eval.evaluate import Evaluator
from omni.model import compiled, lora, static_decode
from omni.model.generate import generate
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker
from omni.train import graphs
from omni.train.features import FeatureStore
from tests.bench import base, cases, machine, workload
from tests.bench.parts import SMOLLM2
from tests.bench.training import Training

TIMEOUT = 90  # seconds that a child process may take
LIMIT = 420  # seconds; a section that would begin later is left out, and named
TINY = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 96,
        "vocab_size": 2000}


class Gpu:
    """The sections of the report. Each returns {name: figure}; one that fails doesn't stop the others."""

    def __init__(self, bench: cases.Bench):
        self.bench, self.device, self.config = bench, bench.device, bench.config_path
        self.real = bench.device.type == "cuda"
        self.cut = {} if self.real else {"data_mix": '{"text_only": 1}'}

    def sections(self) -> dict[str, Callable[[], dict]]:
        return {"graphs against plain steps": self.graphs_equal_plain,
                "answers with graphs": self.answers_equal,
                "tests marked gpu": self.marked_tests,
                "killed and resumed": self.resumed,
                "a full GPU": self.full_memory,
                "the default run": self.default_run,
                "step": self.step,
                "Qwen3-0.6B's shape": self.qwen,
                "SmolLM2-135M's shape": self.smollm}

    def run(self, write: Callable[[dict], None]) -> dict:
        """All sections; `write` gets the figures so far after each, since a later one may end the process."""
        begun, figures = time.time(), {}
        for name, section in self.sections().items():
            started = time.time()
            if started - begun > LIMIT:
                figures[name] = {"left out": f"after {LIMIT} s"}
            else:
                try:
                    self._clean_up()
                    figures[name] = section()
                except (Exception, SystemExit) as err:  # the report is of what works and what doesn't
                    traceback.print_exc()
                    figures[name] = {"FAILED": f"{type(err).__name__}: {str(err).strip().splitlines()[:1]}"}
            figures[name]["seconds of this section"] = time.time() - started
            print(f"\n{name}", *(f"  {key:<62} {_text(value):>14}" for key, value in figures[name].items()),
                  sep="\n", flush=True)
            write(figures)
        return figures

    def _clean_up(self) -> None:
        """Free what the section before has left."""
        gc.unfreeze()
        gc.collect()
        if self.real:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    # Checks

    def marked_tests(self) -> dict:
        files = [f"tests/test_{name}.py" for name in ("attention", "graphs", "generate", "run")]
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0", *files],
                              capture_output=True, text=True, timeout=TIMEOUT)
        lines = (done.stdout + done.stderr).strip().splitlines()
        failed = [line[:100] for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
        return {"exit code (0: passed)": done.returncode, "last line": lines[-1][:100] if lines else "",
                **{f"failed {number}": line for number, line in enumerate(failed[:10], 1)}}

    def graphs_equal_plain(self) -> dict:
        """The loss of 20 steps, by graphs and plainly, from the same weights."""
        losses = {}
        for name, obstacle in (("plain", "this is a check"), ("by graphs", None)):
            w = self._workload()
            with patch.object(graphs, "_obstacle", lambda _, obstacle=obstacle: obstacle):
                train = Training(w, self.device)
            losses[name] = train(0, 20)[:, 0].cpu()
        apart = (losses["by graphs"] / losses["plain"] - 1).abs().max()
        return {"largest difference of the loss, relative (bf16: below 0.03)": float(apart),
                "graphs that were captured": len(train.take.graphs), "they are used": train.take.works}

    def answers_equal(self) -> dict:
        """Greedy answers over static shapes against those with rows dropped, on held-out samples."""
        w = self._workload()
        samples = [s for held in w.mix.val.values() for s in held[:64]]
        prompts = w.dataset.collate(samples, prompts=True).to(self.device)
        answers, seconds = {}, {}
        for name, static in (("dynamic", False), ("static", True)):
            with patch.object(static_decode, "worth_it", lambda _, static=static: static), \
                    autocast(self.device, w.config.precision):
                generate(w.model, prompts, 24)  # captures
                seconds[name] = machine.seconds(
                    lambda name=name: answers.update({name: generate(w.model, prompts, 24)}), self.device)
        same = sum(a == b for a, b in zip(*answers.values(), strict=True))
        return {"equal answers (bf16: nearly all)": f"{same} of {len(samples)}",
                "ms a token, dynamic": 1000 * seconds["dynamic"] / 24,
                "ms a token, static": 1000 * seconds["static"] / 24}

    def resumed(self) -> dict:
        """Weights of a run that was killed at its first checkpoint and resumed, against one that was not."""
        with tempfile.TemporaryDirectory() as folder:
            sets = {"num_epochs": 2, "samples_per_epoch": 640, "eval_samples": 8, "save_every_steps": 5,
                    "feature_cache_dir": f"{folder}/features", **self.cut}
            self._sft(f"{folder}/whole", sets)
            run = subprocess.Popen([sys.executable, "sft_omni.py", *self._arguments(f"{folder}/cut", sets)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while run.poll() is None and not [*Path(folder, "cut").glob("step_*.pt")]:
                time.sleep(0.002)
            run.kill()
            run.wait()
            killed_at = max(int(path.stem[5:]) for path in Path(folder, "cut").glob("step_*.pt"))
            self._sft(f"{folder}/cut", sets, "--resume")
            one, two = (checkpoint.load(Path(folder, name, "omni_final.pt"), "omni", "")["thinker"]["state"]
                        for name in ("whole", "cut"))
        apart = max(float((one[key] - two[key]).abs().max()) for key in one)
        return {"killed after step": killed_at,
                "largest difference of a weight (0 if no row is longer than 128 tokens)": apart}

    def full_memory(self) -> dict:
        if not self.real:
            return {"skipped": "no GPU"}
        with tempfile.TemporaryDirectory() as folder:
            code = ("import torch; torch.cuda.set_per_process_memory_fraction(0.003); import sys, sft_omni;"
                    "from omni.base.console import command; command(sft_omni.main)")
            sets = (f"save_dir={folder}/run", "batch_size=2048", "eval_batch_size=8", "eval_samples=8")
            done = subprocess.run([sys.executable, "-c", code, "--config", self.config,
                                   *(f"--set={key}" for key in sets)],
                                  capture_output=True, text=True, timeout=TIMEOUT)
        lines = done.stderr.strip().splitlines()
        return {"exit code (2 is right)": done.returncode, "lines on stderr (1 is right)": len(lines),
                "the last": lines[-1][:70] if lines else ""}

    # Figures

    def default_run(self) -> dict:
        """The whole run, cold, with the seconds of its parts."""
        parts = {"frozen features": (FeatureStore, "add"), "evaluations": (Evaluator, "score"),
                 "training": (sft_omni, "train_epoch")}
        sets = {} if self.real else {"num_epochs": 1, "samples_per_epoch": 128, "eval_samples": 8,
                                      "log_every_steps": 1, **self.cut}
        with tempfile.TemporaryDirectory() as folder, machine.timed_parts(parts) as spent:
            whole = machine.seconds(lambda: self._sft(
                f"{folder}/run", sets | {"feature_cache_dir": f"{folder}/features"}), self.device)
            rows = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if row["event"] == "epoch"][-1]
        scores = {name: x for name, x in last.items() if isinstance(x, float) and name != "seconds"}
        rate = statistics.median(row["samples_per_s"] for row in rows if row["event"] == "step")
        return {"the whole run, s (45)": whole, **{f"{name}, s": s for name, s in spent.items()},
                "training, samples/s": rate, **scores}

    def step(self) -> dict:
        """Samples/s against `transformers.Trainer`, and the share of a step in which the GPU computes."""
        from tests.bench.baseline import seconds_a_step
        steps, warm = (200, 60) if self.real else (4, 4)
        w = self._workload()
        train, size = Training(w, self.device), w.config.batch_size
        ours = statistics.median(train.seconds_a_step(steps, warm) for _ in range(3))
        trainer = seconds_a_step(self._decoded(min(steps, 60) + min(warm, 20)), self.device, min(steps, 60),
                                 warm=min(warm, 20))
        figures = {"ours, samples/s": size / ours, "transformers.Trainer, samples/s": size / trainer,
                   "ours over Trainer (8)": trainer / ours}
        if self.real:
            busy = machine.gpu_seconds(lambda: train(0, 100)) / 100
            figures["share of a step that the GPU is busy (0.80)"] = busy / ours
        return figures

    def qwen(self) -> dict:
        """MFU and memory of a Thinker of Qwen3-0.6B's shape on conversations of some 1,000 tokens."""
        figures = {}
        arch = base.QWEN3_06B if self.real else replace(base.QWEN3_06B, **TINY)
        for rows, steps in ((8, 20), (32, 8)) if self.real else ((1, 1), (2, 1)):
            with patch.object(base, "QWEN3_06B", arch):
                w = base.build(self.config, self.device, rows, steps + 4)
            work = statistics.mean(cases.flops(w, step.batches[0]) for step in w.dataset)
            tokens = statistics.mean(sum(step.batches[0].layout.lengths) for step in w.dataset)
            figures[f"{rows} conversations"] = self._compile(w.model.thinker)
            for name, again in (("", False), ("activation_checkpointing, ", True)):
                w.model.thinker.activation_checkpointing = again
                self._clean_up()
                with contextlib.suppress(torch.OutOfMemoryError):
                    train = Training(w, self.device)
                    memory = base.peak_memory(self.device, lambda train=train: train(0, 2))
                    seconds = train.seconds_a_step(steps, 4)
                    figures |= {f"{rows}, {name}ms a step": 1000 * seconds,
                                f"{rows}, {name}tokens/s": tokens / seconds,
                                f"{rows}, {name}MFU": work / seconds / self.bench.peak,
                                f"{rows}, {name}peak memory, GB": memory}
                train = None
                w.model.zero_grad(set_to_none=True)
            del w
        return figures

    def smollm(self) -> dict:
        """Samples/s of a Thinker of SmolLM2-135M's shape on the shipped data, LoRA and full."""
        from tests.bench.baseline import seconds_a_step
        figures, steps = {}, 30 if self.real else 2
        for name in ("LoRA", "full"):
            self._clean_up()
            w = self._workload()
            with self.device:
                thinker = Thinker(SMOLLM2 if self.real else replace(SMOLLM2, **TINY))
            if name == "LoRA":
                lora.add_adapters(thinker, 16, 32.0, PROJECTIONS)
            w.model = OmniNetwork(w.model.tokenizer, thinker, *w.model.encoders()).to(self.device)
            figures[name] = self._compile(thinker)
            train = Training(w, self.device)
            ours = train.seconds_a_step(steps, 20 if self.real else 2)
            figures |= {f"{name}, samples/s": w.config.batch_size / ours,
                        f"{name}, peak GB": gpu_memory_gb(self.device)}
            if name == "full":
                w.dataset = self._decoded(steps + 2).dataset  # the Trainer encodes in each step
                trainer = seconds_a_step(w, self.device, steps)
                figures |= {"full, transformers.Trainer, samples/s": w.config.batch_size / trainer,
                            "full, ours over Trainer (3)": trainer / ours}
        return figures

    def _workload(self, cached: bool = True) -> workload.Workload:
        torch.manual_seed(0)  # of the projectors
        return workload.build(self.config, self.device, cached, 400 if self.real else 16)

    def _decoded(self, steps: int) -> workload.Workload:
        """A workload without cached features, whose first steps' media are decoded before they are timed."""
        w = self._workload(cached=False)
        for number in range(steps):
            w.dataset[number]
        return w

    def _compile(self, thinker: Thinker) -> str:
        backend = "inductor" if self.real else "aot_eager"  # a CPU uses neither
        return compiled.compile_blocks(thinker, self.device, "auto", backend)

    def _sft(self, folder: str, sets: dict, *more: str) -> None:
        sft_omni.main([*self._arguments(folder, sets), *more])

    def _arguments(self, folder: str, sets: dict) -> list[str]:
        sets = {"save_dir": folder, "device": self.device.type, **sets}
        return ["--config", self.config, *(f"--set={key}={value}" for key, value in sets.items())]


def _text(value) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else str(value)
