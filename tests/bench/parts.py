"""GPU memory that training open weights takes, counted without a GPU and without the weights."""

from unittest.mock import patch

import torch
from torch.autograd import Function

from omni.base.config import PROJECTIONS, SiglipArch, ThinkerArch, WhisperArch
from omni.data.layout import packed_layout
from omni.model import lora
from omni.model.layers import Block, rope_table
from omni.model.projector import Projector
from omni.model.siglip import SiglipEncoder
from omni.model.thinker import Thinker
from omni.model.whisper import WhisperEncoder

TOKENS, ANSWERS = 8 * 512, 8 * 64  # of a step
SMOLLM2 = ThinkerArch(49152, 576, 30, 9, 3, 64, 1536, qk_norm=False)
QWEN3 = ThinkerArch(151936, 1024, 28, 16, 8, 128, 3072)
SYSTEMS = {"SmolLM2-135M, whisper-base, SigLIP-B": (SMOLLM2, WhisperArch(80, 512, 6, 8, 2048), SiglipArch()),
           "Qwen3-0.6B, whisper-small, SigLIP-B": (QWEN3, WhisperArch(80, 768, 12, 12, 3072), SiglipArch())}


class _Attention(Function):
    """Keeps for the backward pass what a flash kernel keeps: queries, keys, values and the output."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.zeros_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out.flatten(1)

    @staticmethod
    def backward(ctx, dy):
        raise NotImplementedError


def activation_bytes(arch: ThinkerArch, trained: str) -> int:
    """Bytes that one block keeps of a token, for gradients of all weights, of adapters, or of none."""
    block = Block(arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp_width, arch.qk_norm)
    if trained != "full":
        block.requires_grad_(False)
    if trained == "LoRA":
        lora.adapt_block(block, 16, 32.0, PROJECTIONS)
    tokens, kept = 64, {}
    weights = {p.data_ptr() for p in block.parameters()}
    copies = {tuple(p.shape) for p in block.parameters()}  # autocast's, which don't grow with the tokens

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights and tuple(tensor.shape) not in copies:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(tokens, arch.width, requires_grad=True)
    layout = packed_layout([tokens - 1], 1)
    with patch("omni.model.layers.attend", lambda q, k, v, _: _Attention.apply(q, k, v)), \
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
            torch.autocast("cpu", torch.bfloat16):
        block(x, rope_table(layout.positions, arch.head_dim), layout)
    return sum(kept.values()) // tokens


def count(arch: ThinkerArch, audio: WhisperArch, vision: SiglipArch, trained: str) -> dict[str, float]:
    """GB of the weights, of their gradients and moments, and of the activations of a step."""
    with torch.device("meta"):
        thinker, encoders = Thinker(arch), [WhisperEncoder(audio), SiglipEncoder(vision)]
        projectors = [Projector(encoder.token_width, arch.width) for encoder in encoders]
        if trained == "LoRA":
            lora.add_adapters(thinker, 16, 32.0, PROJECTIONS)
        elif trained != "full":
            thinker.requires_grad_(False)
    for encoder in encoders:
        encoder.requires_grad_(False)
    weights = [p for part in (thinker, *encoders, *projectors) for p in part.parameters()]
    training = sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(p.numel() for p in weights if not p.requires_grad)
    copies = 2 * training  # in bf16, for the products
    activations = TOKENS * arch.layers * activation_bytes(arch, trained) + ANSWERS * arch.vocab_size * 8
    parts = {"weights": 2 * frozen + 4 * training + copies, "gradients": 4 * training,
             "moments": 8 * training, "activations": activations}
    return {name: size / 1e9 for name, size in parts.items()}


def parts(_bench) -> dict[str, str | float]:
    """The counted memory of each system, trained in each way."""
    figures = {}
    for name, archs in SYSTEMS.items():
        for trained in ("full", "LoRA", "projectors"):
            counted = count(*archs, trained)
            listed = ", ".join(f"{size:.2f} {what}" for what, size in counted.items())
            figures[f"{name}, {trained}: GB"] = sum(counted.values())
            figures[f"{name}, {trained}: of it"] = listed
    return figures
