"""Low-rank adapters (LoRA, Hu et al. 2021) of a Thinker's projections, and how they are merged."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from omni.model.layers import Block
from omni.model.thinker import Thinker


class LoRALinear(nn.Linear):
    """A frozen projection plus a trained one of low rank: W x + scale * B A x."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))  # begins as the base alone
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged_weight(self) -> torch.Tensor:
        """W + scale * B A, computed in fp32: a sum in bf16 would lose most of a small change."""
        return self.weight.float() + self.scale * (self.lora_B.float() @ self.lora_A.float())


def add_adapters(thinker: Thinker, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze a Thinker and put adapters on the projections named in `targets` ("q_proj", ...)."""
    thinker.requires_grad_(False)
    for block in thinker.layers:
        adapt_block(block, rank, alpha, targets)


def adapt_block(block: Block, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Put adapters on the projections of one block."""
    for module in (block.self_attn, block.mlp):
        for name, child in list(module.named_children()):
            if name in targets:
                setattr(module, name, LoRALinear(child, rank, alpha))


def merged_state(thinker: Thinker) -> dict[str, torch.Tensor]:
    """The state dict of a Thinker without adapters that computes the same: they are merged."""
    state = {name: tensor for name, tensor in thinker.state_dict().items() if ".lora_" not in name}
    for name, module in thinker.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.merged_weight().detach()
    return state
