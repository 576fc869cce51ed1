"""A Thinker of Qwen3-0.6B's shape with random weights, on conversations of about 1,000 tokens."""

import statistics
from pathlib import Path

import torch

from omni.base.config import SFTConfig, ThinkerArch
from omni.base.config_file import load_config
from omni.base.device import gpu_memory_gb, peak_memory_gb
from omni.data.batch import IGNORE
from omni.data.loader import Step
from omni.data.packing import pack
from omni.model.load import load_for_training
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker
from tests.bench.training import Training
from tests.bench.workload import Workload

QWEN3_06B = ThinkerArch(vocab_size=151_936, width=1024, layers=28, heads=16, kv_heads=8, head_dim=128,
                        mlp_width=3072, rope_theta=1e6)
MEAN_LENGTH = 1000  # tokens; lengths are 4/5 to 6/5 of it, and the last fifth is the answer


def build(config_path: str, device: torch.device, rows: int, steps: int) -> Workload:
    """The config's model with that Thinker, and `steps` steps of `rows` conversations of random tokens."""
    config = load_config(config_path, SFTConfig)
    shipped = load_for_training(config, device)
    with device:
        thinker = Thinker(QWEN3_06B)
    model = OmniNetwork(shipped.tokenizer, thinker, *shipped.encoders()).to(device)
    generator = torch.Generator().manual_seed(config.seed)
    return Workload(config, model, None, [_step(rows, generator) for _ in range(steps)])


def _step(conversations: int, generator: torch.Generator) -> Step:
    rows = []
    for length in torch.randint(MEAN_LENGTH * 4 // 5, MEAN_LENGTH * 6 // 5 + 1, (conversations,),
                                generator=generator).tolist():
        ids = torch.randint(QWEN3_06B.vocab_size, (length + 1,), generator=generator).tolist()
        prompt = length * 4 // 5
        rows.append((ids[:-1], [IGNORE] * prompt + ids[prompt + 1:]))
    batch = pack(rows, 0)
    return Step([batch], torch.tensor([[conversations, batch.answer_tokens]]), [])


def peak_memory(device: torch.device, work) -> float:
    """Peak memory in GB while `work` runs: of the GPU, or of this process if there is none."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    work()
    return gpu_memory_gb(device) or peak_memory_gb()


def base(bench) -> dict:
    """Tokens/s compared with the Trainer, the share of the ceiling (MFU), and peak memory.

    A step has eight conversations on a GPU, and one on a CPU, where eight would take a minute.
    """
    from tests.bench.baseline import seconds_a_step
    from tests.bench.cases import ROUNDS, flops

    rows, steps = (8, 10) if bench.device.type == "cuda" else (1, 3)
    w = build(bench.config_path, bench.device, rows, steps + 2)  # the first two are warm-up
    batches = [step.batches[0] for step in w.dataset]
    tokens = statistics.mean(int(b.layout.cu_seqlens[-2]) for b in batches)
    train, figures = Training(w, bench.device), {"conversations a step": rows}
    for name, on in (("with activation_checkpointing", True), ("without", False)):
        w.model.thinker.activation_checkpointing = on
        figures[f"peak memory {name}, GB"] = peak_memory(bench.device, lambda: train(0, 2))
    ours, trainer = [], []
    for _ in range(ROUNDS):
        ours.append(train.seconds_a_step(steps, 2))
        trainer.append(seconds_a_step(w, bench.device, steps))
    seconds = statistics.median(ours)
    work = statistics.mean(flops(w, batch) for batch in batches)
    return figures | {"tokens/s": tokens / seconds, "MFU": work / seconds / bench.peak,
                      "(a) transformers.Trainer, tokens/s": tokens / statistics.median(trainer),
                      "ours over (a)": statistics.median(trainer) / seconds}
