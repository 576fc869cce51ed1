"""A block of the Thinker as it is trained on a CPU: what `layers.Block` computes, in fewer operations.

The flops of a small model cost less there than what stands between them: element-wise passes, small products,
casts, and the calls themselves. So a block is one autograd function here, with products as large as can be
and its gradient written by hand. The residual stream and the norms stay in fp32 (or fp64), all else is in the
plan's `dtype`. N tokens, D wide; H query heads and K key heads of d; M wide inside the MLP.
"""

from dataclasses import dataclass

import torch
from torch.autograd import Function
from torch.nn import functional as F

from omni.config import ThinkerArch
from omni.data.packing import Packing

LONGEST = 1024  # places of a bin: what attention keeps for its gradient is the square of it


def normalise(x, weight, eps: float):
    """x / rms(x) * weight over the last dimension, and what the gradient needs."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    unit = x * scale
    return unit * weight, (unit, scale, weight)


def normalise_back(dy, kept):
    """The gradients of x, still to be multiplied by `scale`, and of the weight; `dy` is written over."""
    unit, scale, weight = kept
    along = dy * unit
    dweight = along.sum(0)
    inward = along.mul_(weight).mean(-1, keepdim=True)
    return dy.mul_(weight).addcmul_(unit, inward, value=-1), dweight


def interleave(x):
    """(heads, d, ...) -> the same with each head's halves interleaved: the pairs that `rotate` rotates."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def deinterleave(x):
    """The inverse of `interleave`."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def rotate(x, rotations):
    """Rotary positions of interleaved heads (N, heads, d): each pair a complex number, times a rotation."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotations).flatten(-2)


def attend(x, heads: "BinnedHeads"):
    """Attention within bins: queries, keys, values (rows, d) -> (rows of the queries, d), and their shares.

    Queries are already divided by sqrt(d). Products over all bins at once are some three times as fast as
    flash attention, which on CPUs goes through them one by one.
    """
    q, k, v = heads.split(x)
    scores = torch.bmm(q, k.transpose(1, 2))
    heads.grid(scores).add_(heads.mask)
    shares = scores.softmax(-1)
    return torch.bmm(shares, v).flatten(0, 1), shares


def attend_back(dy, x, shares, heads: "BinnedHeads", dx) -> None:
    """Writes the gradient of x to `dx`."""
    q, k, v = heads.split(x)
    dq, dk, dv = heads.split(dx)
    dy = dy.view_as(q)
    torch.bmm(shares.transpose(1, 2), dy, out=dv)
    dscores = torch._softmax_backward_data(torch.bmm(dy, v.transpose(1, 2)), shares, -1, shares.dtype)
    torch.bmm(dscores, k, out=dq)
    torch.bmm(dscores.transpose(1, 2), q, out=dk)


def side_by_side(q_proj, k_proj, v_proj, d: int, dtype: torch.dtype):
    """The three matrices (heads * d, D) as one ((H + 2 K) * d, D), cast; queries and keys interleaved."""
    qk = interleave(torch.cat((q_proj, k_proj)).unflatten(0, (-1, d))).flatten(0, 1)
    return torch.cat((qk.to(dtype), v_proj.to(dtype)))


class Block(Function):
    """`layers.Block` on x (N, D) -> (N, D), or those rows (A, D) that `keep` (A,) names."""

    @staticmethod
    def forward(ctx, x, plan: "Plan", keep, cache, norm_in, q_proj, k_proj, v_proj, q_norm, k_norm, o_proj,
                norm_mid, gate_proj, up_proj, down_proj):
        N, H, K, d, full, dtype = len(x), plan.heads, plan.kv_heads, plan.head_dim, x.dtype, plan.dtype
        y, kept_in = normalise(x, norm_in, plan.eps)
        y = y.to(dtype)
        w_qkv = side_by_side(q_proj, k_proj, v_proj, d, dtype)
        qkv = (y @ w_qkv.t()).view(N, -1, d)
        heads, kept_qk = qkv[:, :H + K].to(full), (None, None, None)
        if q_norm is None:
            heads = heads * plan.scales
        else:
            weight = interleave(torch.cat((q_norm.expand(H, d), k_norm.expand(K, d))))
            heads, kept_qk = normalise(heads, weight * plan.scales, plan.eps)
        qkv[:, :H + K] = rotate(heads, plan.rotations)
        if cache is not None:
            true = plan.packing.true(qkv)
            keys = deinterleave(true[:, H:H + K].flatten(0, 1)).view(-1, K, d)
            cache.write(keys, true[:, H + K:], plan.packing.rows, plan.packing.true(plan.packing.positions))
        qkv = qkv.view(-1, d).index_select(0, plan.there)
        mixed, shares = zip(*(attend(part, group) for part, group in plan.by_group(qkv)), strict=True)
        mixed = (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).index_select(0, plan.back).view(N, -1)
        if keep is not None:
            x, mixed = x.index_select(0, keep), mixed.index_select(0, keep)
        w_o, w_gate, w_up, w_down = (w.to(dtype) for w in (o_proj, gate_proj, up_proj, down_proj))
        x = (mixed @ w_o.t()).to(full).add_(x)

        z, kept_mid = normalise(x, norm_mid, plan.eps)
        z = z.to(dtype)
        gate, up = z @ w_gate.t(), z @ w_up.t()
        opened = F.silu(gate)
        inside = opened * up
        ctx.plan, ctx.keep, ctx.N = plan, keep, N
        ctx.save_for_backward(*kept_in, *kept_qk, *kept_mid, y, qkv, mixed, z, gate, up, opened, inside,
                              w_qkv, w_o, w_gate, w_up, w_down, *shares)
        return (inside @ w_down.t()).to(full).add_(x)

    @staticmethod
    def backward(ctx, dout):
        saved = ctx.saved_tensors
        kept_in, kept_qk, kept_mid = saved[:3], saved[3:6], saved[6:9]
        y, qkv, mixed, z, gate, up, opened, inside, w_qkv, w_o, w_gate, w_up, w_down, *shares = saved[9:]
        plan, full, dtype = ctx.plan, dout.dtype, ctx.plan.dtype
        H, K, d = plan.heads, plan.kv_heads, plan.head_dim

        dy = dout.to(dtype)
        ddown_proj, dinside = dy.t() @ inside, dy @ w_down
        dup = dinside * opened
        dgate = torch.ops.aten.silu_backward(dinside.mul_(up), gate)
        dgate_proj, dup_proj = dgate.t() @ z, dup.t() @ z
        dz, dnorm_mid = normalise_back(torch.addmm(dgate @ w_gate, dup, w_up).to(full), kept_mid)
        dx = torch.addcmul(dout, dz, kept_mid[1])

        dy = dx.to(dtype)
        do_proj, dmixed = dy.t() @ mixed, dy @ w_o
        if ctx.keep is not None:  # what is kept more than once has gradients of 0
            dx, dmixed = (g.new_zeros(ctx.N, g.shape[1]).index_add_(0, ctx.keep, g) for g in (dx, dmixed))
        dmixed = dmixed.view(-1, d).index_select(0, plan.forth)
        dqkv, begin = torch.empty_like(qkv), 0
        for (part, group), (dpart, _), attended in zip(plan.by_group(qkv), plan.by_group(dqkv), shares,
                                                       strict=True):
            end = begin + group.sizes[0]
            attend_back(dmixed[begin:end], part, attended, group, dpart)
            begin = end
        dqkv = dqkv.index_select(0, plan.here).view(ctx.N, -1, d)
        dheads, dq_norm, dk_norm = rotate(dqkv[:, :H + K].to(full), plan.rotations_back), None, None
        if kept_qk[0] is None:
            dheads.mul_(plan.scales)
        else:
            dheads, dweight = normalise_back(dheads, kept_qk)
            dheads.mul_(kept_qk[1])
            dq_norm, dk_norm = (dpart.sum(0) for dpart in deinterleave(dweight * plan.scales).split((H, K)))
        dqkv[:, :H + K] = dheads
        dqkv = dqkv.view(ctx.N, -1)
        dqk_proj, dv_proj = (dqkv.t() @ y).split(((H + K) * d, K * d))
        dq_proj, dk_proj = deinterleave(dqk_proj.view(H + K, d, -1)).flatten(0, 1).split((H * d, K * d))
        dz, dnorm_in = normalise_back((dqkv @ w_qkv).to(full), kept_in)
        dx = torch.addcmul(dx, dz, kept_in[1])
        dweights = (dnorm_in, dq_proj, dk_proj, dv_proj, dq_norm, dk_norm, do_proj, dnorm_mid, dgate_proj,
                    dup_proj, ddown_proj)
        return dx, None, None, None, *(None if g is None else g.to(full) for g in dweights)


@dataclass(frozen=True)
class BinnedHeads:
    """A group of bins with the heads of the Thinker.

    Query heads that share a key head stand under one another, so that no key is copied.
    """

    bins: int
    length: int
    heads: int  # of queries, a key head
    kv_heads: int
    mask: torch.Tensor  # (bins or 1, 1, length, length), added to scores

    @property
    def sizes(self) -> list[int]:
        """Rows of queries, keys, values."""
        keys = self.kv_heads * self.bins * self.length
        return [self.heads * keys, keys, keys]

    def rows(self, first: int, heads: int) -> torch.Tensor:
        """(bins * length, kv_heads * heads): the row, from `first` on, of each place's heads."""
        size = self.kv_heads * self.bins * heads * self.length
        numbers = torch.arange(first, first + size).view(self.kv_heads, self.bins, heads, self.length)
        return numbers.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)

    def held(self, places: torch.Tensor, first: int, heads: int) -> torch.Tensor:
        """What those rows hold, if `places` (bins * length,) name a token's head 0 and `first` is wanted."""
        numbers = torch.arange(first, first + self.kv_heads * heads).view(self.kv_heads, 1, heads, 1)
        return (places.view(self.bins, 1, self.length) + numbers).flatten()

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of sizes, d) -> queries (kv_heads * bins, heads * length, d), keys and values likewise."""
        q, k, v = x.split(self.sizes)
        return tuple(part.view(self.kv_heads * self.bins, -1, x.shape[-1]) for part in (q, k, v))

    def grid(self, x: torch.Tensor) -> torch.Tensor:
        """(kv_heads * bins, heads * length, length) as the mask is broadcast over it."""
        return x.view(self.kv_heads, self.bins, self.heads, self.length, self.length)


@dataclass(frozen=True)
class Plan:
    """What all blocks of a step share: tables of rotary positions, and where each head of a token stands."""

    packing: Packing
    dtype: torch.dtype
    eps: float
    heads: int  # H
    kv_heads: int  # K
    head_dim: int  # d
    rotations: torch.Tensor  # (N, 1, d / 2) complex
    rotations_back: torch.Tensor  # their inverse
    scales: torch.Tensor  # (H + K, 1) of queries, 1 / sqrt(d), and of keys, 1
    groups: tuple[BinnedHeads, ...]
    there: torch.Tensor  # for each row of all bins which of the tokens' heads (N * (H + 2 K), d) it holds
    here: torch.Tensor  # for each of those its row
    forth: torch.Tensor  # the same for queries alone, (N * H, d): this is how what they found goes back
    back: torch.Tensor

    @classmethod
    def of(cls, packing: Packing, arch: ThinkerArch, rope, dtype: torch.dtype) -> "Plan":
        """`rope` is `layers.rope_table` of the tokens, `dtype` their own unless autocast has another."""
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        H, K, d = arch.heads, arch.kv_heads, arch.head_dim
        groups, stands, asks, there, forth = [], [], [], [], []
        rows = asking = 0  # of the groups before: all of them, those of queries
        places = packing.there.split([group.bins * group.length for group in packing.groups])
        for group, tokens in zip(packing.groups, places, strict=True):
            seen = torch.ones(1, 1, group.length, group.length, dtype=torch.bool).tril_() \
                if group.mask is None else group.mask
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
            binned = BinnedHeads(group.bins, group.length, H // K, K, mask)
            groups.append(binned)
            asks.append(binned.rows(asking, H // K))
            forth.append(binned.held(tokens * H, 0, H // K))
            asking += binned.sizes[0]
            parts = []
            for size, heads, first in zip(binned.sizes, (H // K, 1, 1), (0, H, H + K), strict=True):
                parts.append(binned.rows(rows, heads))
                there.append(binned.held(tokens * (H + 2 * K), first, heads))
                rows += size
            stands.append(torch.cat(parts, dim=1))
        here, back = (torch.cat(tables).index_select(0, packing.here).flatten() for tables in (stands, asks))
        rotations = torch.view_as_complex(torch.stack([table[:, None, :d // 2] for table in rope], dim=-1))
        scales = torch.tensor([d ** -0.5] * H + [1.0] * K, dtype=rope[0].dtype)[:, None]
        return cls(packing, dtype, arch.norm_eps, H, K, d, rotations, rotations.conj().resolve_conj(), scales,
                   tuple(groups), torch.cat(there), here, torch.cat(forth), back)

    def by_group(self, x: torch.Tensor) -> list[tuple[torch.Tensor, BinnedHeads]]:
        """Rows (rows of all bins, d) -> those of each group, with the group."""
        return [*zip(x.split([sum(group.sizes) for group in self.groups]), self.groups, strict=True)]


def serves(x: torch.Tensor, packing: Packing | None) -> bool:
    """Whether blocks take this way: packed tokens on a CPU, in bins that are not too long."""
    return packing is not None and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) \
        and max(group.length for group in packing.groups) <= LONGEST


def block(layer, x: torch.Tensor, plan: Plan, keep: torch.Tensor | None, cache=None) -> torch.Tensor:
    """`layer`, a `layers.Block`, on x (N, D); of the result those rows that `keep` names.

    Keys and values are put to the `cache`, a `layers.LayerCache`.
    """
    attn, mlp = layer.self_attn, layer.mlp
    norms = (attn.q_norm.weight, attn.k_norm.weight) if attn.qk_norm else (None, None)
    with torch.autocast("cpu", enabled=False):
        return Block.apply(
            x, plan, keep, cache, layer.input_layernorm.weight, attn.q_proj.weight, attn.k_proj.weight,
            attn.v_proj.weight, *norms, attn.o_proj.weight, layer.post_attention_layernorm.weight,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
