"""The Thinker's blocks compiled: on a GPU most of a large model's step goes into copies, casts and norms."""

import importlib.util
import shutil
from collections.abc import Callable

import torch

from omni.base.config import SFTConfig
from omni.base.console import say
from omni.base.device import autocast
from omni.base.distributed import World
from omni.model.layers import rope_table
from omni.model.thinker import Thinker

LEAST = 50_000_000  # weights: compiling takes some 15 s, which a small Thinker doesn't earn back
TOKENS = 128  # of the trial
TOLERANCE = 0.03  # relative, of values and gradients in bf16


def of_run(thinker: Thinker, config: SFTConfig, device: torch.device, world: World) -> None:
    """Compile the blocks if the config's `compile` asks for it. Prints whether, or why not."""
    asked, weights = config.compile, sum(p.numel() for p in thinker.parameters())
    if asked is True or (asked == "auto" and device.type == "cuda" and weights >= LEAST):
        obstacle = _obstacle(device, sharded=world.size > 1 and config.parallel == "fsdp")
        say(f"blocks are not compiled: {obstacle}" if obstacle else
            compile_blocks(thinker, device, config.precision))


def _obstacle(device: torch.device, sharded: bool) -> str | None:
    if device.type == "cpu":
        return "on a CPU they are fused by hand"
    if sharded:
        return "FSDP shards them"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang", "cl"))):
        return "there is no C compiler"
    return None


def compile_blocks(thinker: Thinker, device: torch.device, precision: str, backend: str = "inductor") -> str:
    """Compile the two parts of each block, before and after attention; returns a line about it.

    All blocks share the compiled code. If it fails, or differs from the plain block, it is not used.
    """
    block = thinker.layers[0]
    compiled = _compiled(block, backend)
    try:
        plain = _trial(thinker, (block.begin, block.finish), device, precision)
        found = _trial(thinker, compiled, device, precision)
    except Exception as err:  # any of the compiler's
        return f"blocks are not compiled: {type(err).__name__}: {str(err).strip().splitlines()[0]}"
    apart = max(float((a - b).norm() / b.norm().clamp_min(1e-6)) for a, b in zip(found, plain, strict=True))
    if not apart <= TOLERANCE:
        return f"blocks are not compiled: compiled, they differ by {apart:.1%}"
    torch._dynamo.config.suppress_errors = True  # what can't be compiled later on runs as it is written
    for layer in thinker.layers:
        layer.compiled = _compiled(layer, backend)
    return "blocks are compiled"


def _compiled(block, backend: str) -> tuple[Callable, Callable]:
    return tuple(torch.compile(part, dynamic=True, backend=backend) for part in (block.begin, block.finish))


def _trial(thinker: Thinker, parts: tuple[Callable, Callable], device: torch.device,
           precision: str) -> list[torch.Tensor]:
    """The outputs of a block's two parts, without attention between them, and the gradient of the input."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, thinker.arch.width, generator=generator).to(device).requires_grad_()
    rope = rope_table(torch.arange(TOKENS, device=device), thinker.arch.head_dim)
    begin, finish = parts
    with torch.enable_grad(), autocast(device, precision):
        q, k, v = begin(x, rope)
        out = finish(x, q.flatten(-2) + 0 * (k.sum() + v.sum()).to(q.dtype))
    gradient, = torch.autograd.grad(out.float().square().sum() + v.float().square().sum(), x)
    return [out.detach().float(), q.detach().float(), k.detach().float(), gradient]
