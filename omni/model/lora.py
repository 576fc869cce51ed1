"""Low-rank adapters (LoRA, Hu et al. 2021) of a Thinker's projections, and how they are merged."""

from collections.abc import Sequence

import torch

from omni.model.layers import Block, LoRALinear
from omni.model.thinker import Thinker


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
