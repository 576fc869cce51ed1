"""The machine: its name, its highest measured speeds, and timing."""

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from omni.base.device import choose_device  # noqa: F401 - as a run chooses it


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, including the work that it queued on the GPU."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


@contextlib.contextmanager
def timed_parts(parts: dict[str, tuple[object, str]]) -> Iterator[Counter[str]]:
    """The seconds that are spent in functions: name -> (their module or class, their name there)."""
    spent: Counter[str] = Counter()

    def timed(name: str, call):
        def wrapper(*arguments, **named):
            begun = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - begun
        return wrapper
    with contextlib.ExitStack() as patches:
        for name, (owner, method) in parts.items():
            patches.enter_context(patch.object(owner, method, timed(name, getattr(owner, method))))
        yield spent


def gpu_seconds(work: Callable[[], object]) -> float:
    """Seconds that the GPU computes while `work` runs."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sum(kernel.self_device_time_total for kernel in profiler.key_averages()
               if not kernel.key.startswith("Memcpy HtoD")) / 1e6  # those run beside the computing


def median_seconds(works: dict[str, Callable[[], object]], device: torch.device,
                   rounds: int) -> dict[str, float]:
    """Median seconds of each of `works`, run A B A B ..., so that slow phases of the machine affect all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(t) for name, t in times.items()}


def ceiling(device: torch.device) -> dict[str, float]:
    """Rates of a large matrix product in fp32 and bf16, and of a large copy."""
    n = 8192 if device.type == "cuda" else 2048
    figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        best = min(seconds(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(5))
        figures[f"matmul {str(dtype).removeprefix('torch.')}, TFLOP/s"] = 2 * n ** 3 / best / 1e12
    source = torch.empty(2 ** 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(5))
    figures["copy, GB/s read and written"] = 2 * source.nbytes / best / 1e9
    return figures
