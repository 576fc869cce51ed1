"""The device and precision that a run computes in, and the memory it uses."""

import contextlib
import os

import torch

from omni.base import machine
from omni.base.errors import UserError

CPU_HAS_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
# oneDNN caches compiled code and scratch memory for each shape, by default for 1,024 shapes. With batches of
# many lengths that takes gigabytes. In fp32 it computes convolutions but no matrix products, so few are
# enough. It reads this variable at its first operation.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512" if CPU_HAS_BF16 else "16")


def choose_device(name: str) -> torch.device:
    """The device for a config's `device`: "auto" is CUDA if available, else Apple's MPS, else the CPU.

    UserError if `name` is a GPU that there is not. Several ranks can't share MPS: there "auto" is the CPU.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    mps = alone and torch.backends.mps.is_available()
    found = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in found.items() if available)
    if not found[name]:
        reason = "no such device is available" if alone or name == "cuda" else "ranks can't share it"
        raise UserError(f'"device" is {name}, but {reason}; use "auto" or "cpu"')
    if name == "cuda":
        torch.set_float32_matmul_precision("high")
        # cuDNN's attention plans anew for each shape, which takes longer than a run of small batches.
        torch.backends.cuda.enable_cudnn_sdp(False)
    elif name == "cpu":
        machine.keep_freed_memory()
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """A context of bf16 autocast if `computes_in_bf16`; otherwise one that does nothing."""
    on = computes_in_bf16(device, precision)
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether `precision` is "bf16", or "auto" on a device with native bf16.

    UserError if it is "bf16" and the device has none at all: MPS before macOS 14.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    elif device.type == "mps":
        native = torch.backends.mps.is_macos_or_newer(14, 0)
        if precision == "bf16" and not native:
            raise UserError('"precision" is bf16, which MPS has since macOS 14; use "auto" or "fp32"')
    else:
        native = CPU_HAS_BF16
    return precision == "bf16" or (precision == "auto" and native)


def gpu_memory_gb(device: torch.device) -> float:
    """Peak memory that tensors took on the GPU so far, in GiB; on MPS what is reserved now; 0 on a CPU."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2 ** 30
    return torch.cuda.max_memory_allocated() / 2 ** 30 if device.type == "cuda" else 0.0


def peak_memory_gb() -> float:
    """Peak main memory of this process so far, in GiB; 0 if the system doesn't say."""
    return machine.peak_memory() / 2 ** 30
