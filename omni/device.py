"""The device and precision that a run computes in, and the memory it uses."""

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

from omni.errors import UserError

# oneDNN caches compiled code for each shape of a matrix product, by default for 1,024 shapes. With batches of
# many lengths that takes a gigabyte. It reads this variable at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors of up to 32 MB.

    By default it may return the memory to the system and request it again for each operation, page by page,
    which can take much longer than the operation itself. Does nothing on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2 ** 25)  # M_MMAP_THRESHOLD: larger blocks are always returned
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def choose_device(name: str) -> torch.device:
    """The device for a config's `device`: "auto" is CUDA if available, else the CPU.

    UserError if `name` is "cuda" and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError('"device" is cuda, but no CUDA device is available; use "auto" or "cpu"')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """A context of bf16 autocast if `computes_in_bf16`; otherwise one that does nothing."""
    on = computes_in_bf16(device, precision)
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether `precision` is "bf16", or "auto" on a device with native bf16."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16" or (precision == "auto" and native)


def gpu_memory_gb(device: torch.device) -> float:
    """Peak memory that tensors took on the GPU so far, in GiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2 ** 30 if device.type == "cuda" else 0.0


def peak_memory_gb() -> float:
    """Peak main memory of this process so far, in GiB.

    On Linux it is read from /proc, because ru_maxrss starts at the value of the parent process.
    """
    status = Path("/proc/self/status")
    peak = status.read_text(encoding="utf-8").partition("VmHWM:")[2].split() if status.exists() else []
    if peak:
        return int(peak[0]) / 2 ** 20  # kB
    unit = 2 ** 30 if sys.platform == "darwin" else 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
