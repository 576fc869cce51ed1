"""What the Thinker and both encoders are made of: RMSNorm, rotary positions, attention, SwiGLU, the block.

Names and mathematics follow Llama and Qwen3 as `transformers` writes them, so that their state dicts map by
renaming.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from omni.data.packing import Packing
from omni.model import cpu_block

SCORES = 2 ** 24  # of attention that a CPU holds at once: 32 MB in bf16


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_table(positions: torch.Tensor, head_dim: int,
               theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of rotary positions (Su et al. 2021): (..., T) -> two of (..., T, head_dim), float32."""
    even = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = theta ** (-even / head_dim)
    angles = positions[..., None].float() * frequencies
    # The two halves of a head turn together, as in Llama.
    return tuple(torch.cat((table, table), dim=-1) for table in (angles.cos(), angles.sin()))


def apply_rope(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn queries or keys (..., T, H, head_dim) by the table of `rope_table`."""
    cos, sin = (table[..., None, :].to(x.dtype) for table in rope)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@dataclass
class LayerCache:
    """Keys and values of one layer: two (B, kv heads, T max, head_dim); row b is filled to its own length."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor,
              positions: torch.Tensor) -> None:
        """Put the keys and values (n, kv heads, d) of n tokens at `positions` (n,) of `rows` (n,)."""
        self.keys[rows, :, positions] = keys.to(self.keys.dtype)
        self.values[rows, :, positions] = values.to(self.values.dtype)


def dot_product_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
                          causal: bool) -> torch.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) of (B, H, T, d) to (B, H, S, d): -> (B, H, T, d).

    PyTorch's goes through the heads one by one on a CPU, and back ten times as slowly in bf16 as in fp32.
    There it is products over all heads at once, as long as their scores fit; if not, PyTorch's in fp32.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        if q.shape[:-1].numel() * k.shape[2] > SCORES:
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask,
                                                  is_causal=causal)
        scores = (q.to(k.dtype) * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if causal:
            mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril_()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Grouped-query attention with optional RMSNorm of queries and keys, without biases."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool,
                 eps: float = 1e-6):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.qk_norm = heads, kv_heads, head_dim, qk_norm
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()

    def forward(self, x, rope=None, *, causal=False, mask=None, cache: LayerCache | None = None,
                positions=None, packing: Packing | None = None):
        """x (B, T, width) -> (B, T, width), or with a `packing` (N, width) -> (N, width).

        `mask` (B, 1, T or 1, keys) is True where a query may look. To a `cache` the new keys and values are
        written: those of a `packing`, or of one token a row (T = 1) at `positions` (B,), whose attention then
        runs over the first keys of the cache.
        """
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if packing is None:
            out = self._attend(q, k, v, causal, mask, cache, positions)
        else:
            if cache is not None:
                cache.write(*map(packing.true, (k, v)), packing.rows, packing.true(packing.positions))
            bins = zip(*map(packing.binned, (q, k, v)), strict=True)
            out = packing.unbinned([self._attend(*parts, causal and group.mask is None, group.mask)
                                    for parts, group in zip(bins, packing.groups, strict=True)])
        return self.o_proj(out.to(x.dtype))

    def _attend(self, q, k, v, causal, mask=None, cache=None, positions=None):
        """q, k, v (B, T, heads, head_dim) -> (B, T, heads * head_dim)."""
        B, T, _, _ = q.shape
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        groups = self.heads // self.kv_heads
        if cache is not None:
            cache.write(k[:, :, 0], v[:, :, 0], torch.arange(B, device=q.device), positions)
            # One token a row: the queries that share a key head stand as several positions, so that no key
            # is copied.
            k, v = (kept[:, :, :mask.shape[-1]] for kept in (cache.keys, cache.values))
            q = q.reshape(B, self.kv_heads, groups, self.head_dim)
        elif groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = dot_product_attention(q, k, v, mask, causal)
        return out.reshape(B, self.heads, T, self.head_dim).transpose(1, 2).flatten(2)


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
                 eps: float = 1e-6):
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, heads, kv_heads, head_dim, qk_norm, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(self, x: torch.Tensor, rope=None, *, plan: cpu_block.Plan | None = None,
                keep: torch.Tensor | None = None, **attention) -> torch.Tensor:
        """As `Attention`; of packed tokens `keep` (A,) names those that are asked for: -> (A, width)."""
        if plan is not None:
            return cpu_block.block(self, x, plan, keep, attention["cache"])
        mixed = self.self_attn(self.input_layernorm(x), rope, **attention)
        if keep is not None:
            x, mixed = x.index_select(0, keep), mixed.index_select(0, keep)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


def init_weights(model: nn.Module, layers: int, std: float = 0.02) -> None:
    """GPT-2's initialisation: normal(0, std), 1/sqrt(2 layers) of it where a layer writes to the residual."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            scaled = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, 0.0, std / (2 * layers) ** 0.5 if scaled else std)
