"""What the Thinker and both encoders are built of: RMSNorm, rotary positions, attention, SwiGLU, the block;
and a projection with an adapter.

Names and mathematics follow Llama and Qwen3 as `transformers` writes them, so that their state dicts map by
renaming.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from omni.data.layout import PackedLayout
from omni.model.attention import DecodeLayout, Layout, attend

Rope = tuple[torch.Tensor, torch.Tensor]  # cos and sin of `rope_table`


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_table(positions: torch.Tensor, head_dim: int, theta: float = 10000.0,
               scaling: dict | None = None) -> Rope:
    """cos and sin of rotary positions (Su et al. 2021): (..., T) -> two of (..., T, head_dim), float32.

    `scaling` is that of Llama 3.1 for long contexts, under the keys of its config.json.
    """
    even = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = theta ** (-even / head_dim)
    if scaling is not None:
        frequencies = _scaled(frequencies, **scaling)
    angles = positions[..., None].float() * frequencies
    # Dimensions i and i + head_dim / 2 are a pair, as in Llama.
    return tuple(torch.cat((table, table), dim=-1) for table in (angles.cos(), angles.sin()))


def _scaled(frequencies: torch.Tensor, factor: float, low_freq_factor: float, high_freq_factor: float,
            original_max_position_embeddings: int) -> torch.Tensor:
    """Slow frequencies are divided by `factor`, fast ones are kept, those between are interpolated."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)  # in the original context
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def apply_rope(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate queries or keys (..., T, H, head_dim) by the angles of `rope_table`."""
    cos, sin = (table[..., None, :].to(x.dtype) for table in rope)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


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


@dataclass
class LayerCache:
    """Keys and values of one layer: two (rows, K, longest, d). Each row is filled to its own length."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, keys: torch.Tensor, values: torch.Tensor,
               layout: PackedLayout | DecodeLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values; returns those that the new tokens attend to.

        For a packed prompt (N, K, d) these are the new ones. For one new token per row (B, 1, K, d) these are
        all of the row so far (B, reach, K, d).
        """
        if isinstance(layout, PackedLayout):
            self._write(layout.rows, layout.positions, keys, values)
            return keys, values
        rows = torch.arange(len(keys), device=keys.device)
        self._write(rows, layout.positions, keys[:, 0], values[:, 0])
        return tuple(kept[:, :, :layout.reach].transpose(1, 2) for kept in (self.keys, self.values))

    def _write(self, rows, positions, keys, values) -> None:
        self.keys[rows, :, positions] = keys.to(self.keys.dtype)
        self.values[rows, :, positions] = values.to(self.values.dtype)


class Attention(nn.Module):
    """Grouped-query attention with optional RMSNorm of queries and keys (Qwen3), or biases (Qwen2)."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool,
                 eps: float = 1e-6, qkv_bias: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.qk_norm = heads, kv_heads, head_dim, qk_norm
        self.q_proj = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()

    def project(self, x: torch.Tensor, rope: Rope | None) -> tuple[torch.Tensor, ...]:
        """(..., width) -> rotated queries (..., H, d), rotated keys and values (..., K, d)."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        return q, k, v


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then SwiGLU, each added to the residual stream."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int, qk_norm: bool,
                 eps: float = 1e-6, qkv_bias: bool = False):
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, heads, kv_heads, head_dim, qk_norm, eps, qkv_bias)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, mlp_width)
        self.compiled: tuple[Callable, Callable] | None = None  # `begin` and `finish`, for training

    def forward(self, x: torch.Tensor, rope: Rope | None, layout: Layout, cache: LayerCache | None = None,
                keep: torch.Tensor | None = None) -> torch.Tensor:
        """x (N, width) in a packed layout, else (B, T, width) -> the same shape.

        New keys and values are written to the `cache`. `keep` (A,) are packed tokens whose results alone are
        needed: -> (A, width).
        """
        compiled = self.compiled if torch.is_grad_enabled() else None  # it would be compiled again without
        begin, finish = compiled or (self.begin, self.finish)
        q, k, v = begin(x, rope)
        if cache is not None:
            k, v = cache.update(k, v, layout)
        attended = attend(q, k, v, layout)
        if keep is not None:
            x, attended = x.index_select(0, keep), attended.index_select(0, keep)
        return finish(x, attended)

    def begin(self, x: torch.Tensor, rope: Rope | None) -> tuple[torch.Tensor, ...]:
        """What comes before attention: queries, keys and values of x."""
        return self.self_attn.project(self.input_layernorm(x), rope)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What comes after it, from the attention's output (..., H * d)."""
        x = x + self.self_attn.o_proj(attended.to(x.dtype))
        return x + self.mlp(self.post_attention_layernorm(x))


def init_weights(model: nn.Module, layers: int, std: float = 0.02) -> None:
    """GPT-2's initialisation of matrices: normal(0, std), with std / sqrt(2 layers) before residual sums."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            scaled = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, 0.0, std / (2 * layers) ** 0.5 if scaled else std)
