"""Where and in which precision a run computes."""

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

from omni.errors import UserError

# oneDNN keeps the code that it makes for each shape of a matrix product, 1,024 of them unless told otherwise:
# with batches of many lengths that is a gigabyte. It reads this when the first one is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")


def keep_freed_memory() -> None:
    """Have the C library keep what tensors of up to 32 MB leave behind, where it is glibc.

    Otherwise it may give the memory back and fetch it again with each operation, page by page, which can cost
    many times what the operation itself does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2 ** 25)  # M_MMAP_THRESHOLD: larger pieces are always given back
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def choose_device(name: str) -> torch.device:
    """The device for a config's `device`: "auto" is CUDA if there is one, else the CPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError('"device" is cuda, and no CUDA device is available here; use "auto" or "cpu"')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16 autocast where a run computes in bf16; otherwise plain fp32."""
    on = computes_in_bf16(device, precision)
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """For "bf16", and for "auto" where the device computes in bf16."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16" or (precision == "auto" and native)


def gpu_memory_gb(device: torch.device) -> float:
    """Peak memory allocated on the GPU so far; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2 ** 30 if device.type == "cuda" else 0.0


def peak_memory_gb() -> float:
    """Peak main memory of this process so far.

    On Linux not by ru_maxrss, which begins at that of the process that started this one.
    """
    status = Path("/proc/self/status")
    peak = status.read_text(encoding="utf-8").partition("VmHWM:")[2].split() if status.exists() else []
    if peak:
        return int(peak[0]) / 2 ** 20  # kB
    unit = 2 ** 30 if sys.platform == "darwin" else 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
