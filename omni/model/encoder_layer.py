"""The transformer layer that Whisper's and SigLIP's encoders have in common."""

from collections.abc import Callable

import torch
from torch import nn

from omni.model.attention import FullLayout, attend

Activation = Callable[[torch.Tensor], torch.Tensor]


class BiasedAttention(nn.Module):
    """Multi-head attention with biases; `key_bias` False leaves out that of the keys."""

    def __init__(self, width: int, heads: int, key_bias: bool):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=key_bias)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, layout: FullLayout) -> torch.Tensor:
        q, k, v = (projection(x).unflatten(-1, (self.heads, -1))
                   for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, layout).to(x.dtype))


class EncoderLayer(nn.Module):
    """(B, T, width) -> the same: attention, then a two-layer MLP, each behind a LayerNorm, with biases."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation, eps: float,
                 key_bias: bool = True):
        super().__init__()
        self.activation = activation
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = BiasedAttention(width, heads, key_bias)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: torch.Tensor, layout: FullLayout) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), layout)
        return x + self.fc2(self.activation(self.fc1(self.layer_norm2(x))))
