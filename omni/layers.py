"""What the Thinker and both encoders are made of: RMSNorm, rotary positions, attention, SwiGLU, the block.

Names and mathematics follow Llama and Qwen3 as `transformers` writes them, so that their state dicts map by
renaming.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from torch.nn import functional as F

ROUND = 64  # tokens


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
    angles = torch.cat((angles, angles), dim=-1)  # the two halves of a head turn together, as in Llama
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn queries or keys (..., T, H, head_dim) by the table of `rope_table`."""
    cos, sin = (table[..., None, :].to(x.dtype) for table in rope)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@dataclass(frozen=True)
class Group:
    """Rows of like length within a `Packing`: attention alone needs them one under another, padded."""

    tokens: slice  # of the packed ones
    places: torch.Tensor  # of each in (rows * longest,)
    rows: int
    longest: int

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (rows, longest, ...), zero at padding."""
        padded = x.new_zeros(self.rows * self.longest, *x.shape[1:])
        return padded.index_copy(0, self.places, x[self.tokens]).unflatten(0, (self.rows, self.longest))

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, longest, ...) -> (tokens, ...)."""
        return x.flatten(0, 1).index_select(0, self.places)


@dataclass(frozen=True)
class Packing:
    """The true tokens of a right-padded (B, T) batch, end to end, shorter rows first; then spare ones.

    Nothing is computed on padding, save in attention, which pads a row to less than twice its length. The
    spare tokens make N a multiple of ROUND: for each size that is new, oneDNN compiles its products anew.
    """

    rows: torch.Tensor  # (N - spare,) of 0 .. B - 1
    positions: torch.Tensor  # (N,) of 0 .. T - 1
    groups: tuple[Group, ...]
    spare: int

    @classmethod
    def of(cls, lengths: torch.Tensor) -> "Packing":
        """Of rows of `lengths` (B,)."""
        device, lengths = lengths.device, lengths.cpu()
        order = lengths.argsort(stable=True)
        found, groups, start = [], [], 0
        for _, alike in groupby(order.tolist(), key=lambda row: (int(lengths[row]) - 1).bit_length()):
            rows = torch.tensor(list(alike))
            longest = int(lengths[rows[-1]])
            valid = torch.arange(longest) < lengths[rows, None]
            places = valid.flatten().nonzero()[:, 0]
            found.append((rows[places // longest], places % longest))
            groups.append(Group(slice(start, start + len(places)), places.to(device), len(rows), longest))
            start += len(places)
        rows, positions = (torch.cat(parts).to(device) for parts in zip(*found, strict=True))
        spare = -start % ROUND
        return cls(rows, F.pad(positions, (0, spare)), tuple(groups), spare)

    def pack(self, x: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """(B, T, ...) -> (N, ...), `fill` in the spare ones."""
        true = x[self.rows, self.positions[:len(self.rows)]]
        return torch.cat((true, x.new_full((self.spare, *x.shape[2:]), fill)))


@dataclass
class LayerCache:
    """Keys and values of one layer: two (B, kv heads, T max, head_dim); row b is filled to its own length."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        """Put new keys and values (B, kv heads, T, head_dim) at `positions` (B, T) of each row."""
        index = positions[:, None, :, None].expand_as(keys)
        self.keys.scatter_(2, index, keys.to(self.keys.dtype))
        self.values.scatter_(2, index, values.to(self.values.dtype))


class Attention(nn.Module):
    """Grouped-query attention with optional RMSNorm of queries and keys, without biases."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool,
                 eps: float = 1e-6):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()

    def forward(self, x, rope=None, *, causal=False, mask=None, cache: LayerCache | None = None,
                positions=None, packing: Packing | None = None):
        """x (B, T, width) -> (B, T, width), or with a `packing` (N, width) -> (N, width).

        `mask` (B, 1, T or 1, keys) is True where a query may look. With a `cache`, the new keys are written
        at `positions` (B, T), and with a `mask` besides T is 1 and attention runs over the first keys of
        the cache.
        """
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if packing is None:
            out = self._attend(q, k, v, causal, mask, cache, positions)
        else:
            out = [group.pack(self._attend(*map(group.pad, (q, k, v)), causal)) for group in packing.groups]
            out = torch.cat([*out, out[0].new_zeros(packing.spare, out[0].shape[1])])
        return self.o_proj(out.to(x.dtype))

    def _attend(self, q, k, v, causal, mask=None, cache=None, positions=None):
        """q, k, v (B, T, heads, head_dim) -> (B, T, heads * head_dim)."""
        B, T, _, _ = q.shape
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        groups = self.heads // self.kv_heads
        if cache is not None:
            cache.write(k, v, positions)
        if cache is not None and mask is not None:
            # One new token a row: the queries that share a key head stand as several positions, so that no
            # key is copied. Without a mask the new keys are all: the prompt's own causal attention.
            k, v = (kept[:, :, :mask.shape[-1]] for kept in (cache.keys, cache.values))
            q = q.reshape(B, self.kv_heads, groups, self.head_dim)
        elif groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        # On CPUs the backward of bf16 attention is ten times slower than fp32's: there it runs in fp32.
        with torch.autocast("cpu", enabled=False):
            if q.device.type == "cpu":
                q, k, v = q.float(), k.float(), v.float()
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
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

    def forward(self, x: torch.Tensor, rope=None, **attention) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, **attention)
        return x + self.mlp(self.post_attention_layernorm(x))


def init_weights(model: nn.Module, layers: int, std: float = 0.02) -> None:
    """GPT-2's initialisation: normal(0, std), 1/sqrt(2 layers) of it where a layer writes to the residual."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            scaled = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, 0.0, std / (2 * layers) ** 0.5 if scaled else std)
