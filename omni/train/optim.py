"""The optimizer, its learning rate at each step, and gradient clipping."""

import math
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from omni.base import distributed
from omni.base.config import SCHEDULES, PretrainConfig, SFTConfig
from omni.base.errors import UserError
from omni.model.omni import OmniNetwork

DECAY = 0.2  # the share of a run's steps in which the rate of "wsd" falls


def lr_factor(step: int, total: int, warmup: int, floor: float, schedule: str = "cosine") -> float:
    """Learning rate at `step` (from 0), relative to its peak: linear warm-up, then the schedule.

    "cosine" falls to `floor`; "constant" stays at the peak; "wsd" (warm-up, stable, decay) stays there too,
    and falls linearly to `floor` in the last steps.
    """
    warmup = min(warmup, total // 2)  # a short run warms up for half of its steps at most
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        left = (total - step) / max(1.0, DECAY * total)
        return floor + (1 - floor) * max(0.0, min(1.0, left))
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def lr_factor_of(config: SFTConfig, step: int, total: int) -> float:
    """`lr_factor` with the keys of a config."""
    return lr_factor(step, total, config.warmup_steps, config.min_learning_rate_ratio, config.schedule)


def rate_jump(config: SFTConfig, optimizer: torch.optim.Optimizer, step: int, total: int,
              before: float) -> str:
    """What a resume after `step` says if the learning rate jumps, else "".

    `before` is the rate that the optimizer's first group had in the last step.
    """
    if not 0 < step < total:
        return ""
    peak = optimizer.param_groups[0]["peak_lr"]
    usual, after = (peak * lr_factor_of(config, number, total) for number in (step - 1, step))
    if abs(before - usual) <= 0.01 * usual:  # what this run would have had too
        return ""
    others = ", ".join(f'"{name}"' for name in SCHEDULES if name != config.schedule)
    return (f"; its learning rate was {before:.2e} and is {after:.2e} from now on, since "
            f'"schedule": "{config.schedule}" spans all {total:,} steps. Other schedules: {others}; '
            f'"learning_rate" {config.learning_rate:g} is the peak of each')


def adamw(groups: list[tuple[nn.Module, float]], weight_decay: float, root: nn.Module) -> torch.optim.AdamW:
    """Fused AdamW over (module, learning rate) groups. No weight decay for norms and biases.

    AssertionError unless the groups hold every trainable parameter of `root` exactly once.
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


def of_run(model: OmniNetwork, config: SFTConfig) -> torch.optim.AdamW:
    """The optimizer of a run: the rate of each part of the system. Frozen weights are in no group."""
    audio_rate = config.audio_projector_learning_rate or config.projector_learning_rate
    return adamw([(model.thinker, config.learning_rate), (model.audio_projector, audio_rate),
                  (model.vision_projector, config.projector_learning_rate),
                  *((encoder, config.encoder_learning_rate) for encoder in model.encoders())],
                 config.weight_decay, model)


class Update:
    """Clips the gradients to a norm of `limit` and applies them, unless loss or gradients are not finite.

    Sharded gradients, and those on other devices than CUDA, are read to decide. With CUDA nothing waits for
    the device: AdamW's kernel divides by `grad_scale` and does nothing where `found_inf` is 1. There `bad`
    counts the skipped steps in a row, and after `max_bad` of them nothing is applied any more, as if the run
    had ended at once.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float, max_bad: int):
        self.optimizer, self.limit, self.max_bad = optimizer, limit, max_bad
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        device = self.params[0].device
        self.waits = device.type != "cuda" or any(isinstance(p, DTensor) for p in self.params)
        self.bad = torch.zeros((), device=device)

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """Update the weights and drop the gradients, whose step had this `loss`.

        Returns (3,) on the device: the loss, the norm before clipping, and 1 if the step was applied.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        applied = torch.isfinite(loss + whole)
        if self.waits:
            if applied:
                if whole > self.limit:
                    torch.nn.utils.clip_grads_with_norm_(self.params, self.limit, norm)
                self.optimizer.step()
        else:
            applied = applied & (self.bad < self.max_bad)
            self.bad.add_(1).mul_(~applied)
            self.optimizer.grad_scale = ((whole + 1e-6) / self.limit).clamp(min=1)
            self.optimizer.found_inf = (~applied).float()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack((loss, whole.to(loss.dtype), applied.to(loss.dtype)))


def of_stage(model: nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a pretraining stage: AdamW; with "muon", Muon for the blocks' matrices too.

    Muon (Jordan et al. 2024) gives all directions of a matrix equal steps. Its updates are scaled to the
    size of AdamW's, so both take the same learning rate. With "muon" only the blocks' matrices decay.
    """
    if config.head_learning_rate is not None:  # stage B alone has it, and only with AdamW
        groups = [(model["encoder"], config.learning_rate), (model["head"], config.head_learning_rate)]
        return [adamw(groups, config.weight_decay, model)]
    if config.optimizer == "adamw":
        return [adamw([(model, config.learning_rate)], config.weight_decay, model)]
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, config.learning_rate, config.weight_decay,
                            adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW(others, config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for optimizer in (muon, rest):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, rest]


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(group["peak_lr"] * factor)
        else:
            group["lr"] = group["peak_lr"] * factor


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Keep the learning rates on the device, where a CUDA graph reads them at each replay."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group.update(capturable=True, lr=torch.tensor(float(group["lr"]), device=device))


def content(optimizer: torch.optim.Optimizer) -> dict:
    """Its state for a checkpoint; learning rates are numbers."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def restore(optimizer: torch.optim.Optimizer, saved: dict, where: str | Path) -> None:
    """Load a checkpoint's AdamW moments. Learning rates and weight decay stay those of the config.

    UserError if a shape differs: the fused kernel doesn't check, and would write past the end of a tensor.
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
        raise UserError(f"{where}: its optimizer state does not fit the parameters that are trained")
    state = {number: distributed.sharded_like(dict.fromkeys(moments, params[number]), moments)
             for number, moments in state.items()}
    optimizer.load_state_dict({**own, "state": state})
