"""Parameter groups, and the learning rate as a function of the step."""

import math
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from omni import distributed
from omni.errors import UserError


def lr_factor(step: int, total: int, warmup: int, floor: float) -> float:
    """The factor of the peak learning rate at `step` (from 0): linear warm-up, then cosine to `floor`."""
    warmup = min(warmup, total // 2)  # a short run warms up for at most half of its steps
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(groups: list[tuple[nn.Module, float]], weight_decay: float, root: nn.Module) -> torch.optim.AdamW:
    """Fused AdamW over (module, learning rate) groups; matrices are decayed, norms and biases are not.

    Every trainable parameter of `root` is in exactly one group and no frozen one is in any, or it raises.
    """
    parameter_groups = []
    for module, rate in groups:
        trained = [p for p in module.parameters() if p.requires_grad]
        for decay, params in ((weight_decay, [p for p in trained if p.dim() >= 2]),
                              (0.0, [p for p in trained if p.dim() < 2])):
            if params:
                parameter_groups.append(
                    {"params": params, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    grouped = [id(p) for g in parameter_groups for p in g["params"]]
    trainable = [id(p) for p in root.parameters() if p.requires_grad]
    if sorted(grouped) != sorted(trainable):
        raise AssertionError(f"{len(trainable)} trainable parameters, {len(grouped)} in the optimizer")
    return torch.optim.AdamW(parameter_groups, betas=(0.9, 0.98), fused=True)


def clip(params: list[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale the gradients down to a norm of `limit`; returns the norm that they had."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if whole.is_cuda or whole > limit:  # a GPU multiplies by 1 sooner than it could be asked
        torch.nn.utils.clip_grads_with_norm_(params, limit, norm)
    return whole


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate is its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def restore(optimizer: torch.optim.Optimizer, saved: dict, where: str | Path) -> None:
    """Put the moments of a checkpoint back. Rates and decay stay as the config has them.

    Every shape is checked: the fused kernel trusts them, and would write past the end of a moment too small.
    """
    own = optimizer.state_dict()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        groups, state = saved["param_groups"], saved["state"]
        fits = [g["params"] for g in groups] == [g["params"] for g in own["param_groups"]] and all(
            moments["step"].shape == () and moments["exp_avg"].shape == moments["exp_avg_sq"].shape
            == params[number].shape for number, moments in state.items())
    except (KeyError, TypeError, AttributeError, IndexError):
        fits = False
    if not fits:
        raise UserError(f"{where}: its optimizer state is not one of the parameters that are trained here")
    state = {number: distributed.sharded_like(dict.fromkeys(moments, params[number]), moments)
             for number, moments in state.items()}
    optimizer.load_state_dict({**own, "state": state})
