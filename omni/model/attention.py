"""Attention: one `attend(q, k, v, layout)`, and the backends that it chooses from by layout and device.

    packed rows, CUDA in half precision    torch's kernel for packed rows (FlashAttention 2, Dao 2023)
    packed rows, anything else             the rows are copied into bins: rectangles with a mask
    rectangles (B, T), CPU                 products over all heads at once, as long as their scores fit
    rectangles (B, T), anything else       PyTorch's scaled_dot_product_attention
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from omni.data.layout import PackedLayout

MAX_SCORES = 2 ** 24  # attention scores that a CPU holds at once: 32 MB in bf16


@dataclass(frozen=True)
class FullLayout:
    """(B, T) positions that all attend to each other, or only to those where `valid` (B, T) is True."""

    valid: torch.Tensor | None = None


@dataclass(frozen=True)
class DecodeLayout:
    """One new token per row (B, 1), at `positions` (B,). It attends to the cached tokens and itself.

    `reach` is above every position: keys from there on are not read.
    """

    positions: torch.Tensor
    reach: int

    @cached_property
    def seen(self) -> torch.Tensor:
        """(B, 1, 1, reach) True for the keys that a row's new token attends to."""
        keys = torch.arange(self.reach, device=self.positions.device)
        return (keys <= self.positions[:, None])[:, None, None]


Layout = PackedLayout | FullLayout | DecodeLayout


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) with grouped queries (Ainslie et al. 2023).

    q (N, H, d), k and v (N, K, d) of a packed layout, causal within each row -> (N, H * d).
    q (B, T, H, d), k and v (B, S, K, d) of the others -> (B, T, H * d). H is a multiple of K.
    """
    if isinstance(layout, PackedLayout):
        return (_packed_kernel if has_packed_kernel(q) else _binned)(q, k, v, layout)
    if isinstance(layout, DecodeLayout):
        return _decode(q, k, v, layout.seen)
    mask = None if layout.valid is None else layout.valid[:, None, None]
    return attend_rectangle(q, k, v, mask, causal=False)


def has_packed_kernel(q: torch.Tensor) -> bool:
    """Whether the kernel for packed rows takes queries like `q` (N, H, d)."""
    return q.is_cuda and compute_dtype(q) in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of products with `x`. Under autocast `x` may still be fp32, which norms return."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _packed_kernel(q, k, v, layout: PackedLayout) -> torch.Tensor:
    dtype, starts = compute_dtype(q), layout.cu_seqlens
    longest = 1 << (layout.max_seqlen - 1).bit_length()  # few values: a captured graph serves many batches
    return varlen_attn(q.to(dtype), k.to(dtype), v.to(dtype), starts, starts, longest, longest,
                       window_size=(-1, 0)).flatten(1)  # causal


def _binned(q, k, v, layout: PackedLayout) -> torch.Tensor:
    bins = layout.bins
    sizes = [group.bins * group.length for group in bins.groups]
    parts = zip(*(gather(x, bins.token_of_slot, bins.slot_of_token).split(sizes) for x in (q, k, v)),
                strict=True)
    out = [attend_rectangle(*(x.unflatten(0, (group.bins, group.length)) for x in part), group.mask,
                            causal=group.mask is None).flatten(0, 1)
           for part, group in zip(parts, bins.groups, strict=True)]
    return gather(torch.cat(out), bins.slot_of_token, bins.token_of_slot)


def _decode(q, k, v, mask: torch.Tensor) -> torch.Tensor:
    """Query heads that share a key head are treated as positions, so that no key is copied."""
    (B, _, H, d), K = q.shape, k.shape[2]
    q = q.view(B, K, H // K, d).transpose(1, 2)  # (B, H / K, K, d)
    out = attend_rectangle(q, k, v, mask, causal=False).view(B, H // K, K, d)
    return out.transpose(1, 2).reshape(B, 1, H * d)


def attend_rectangle(q, k, v, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    """q (B, T, H, d), k and v (B, S, K, d), `mask` broadcast over (B, H, T, S) -> (B, T, H * d)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.shape[1] > k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return _dot_product(q, k, v, mask, causal).transpose(1, 2).flatten(2)


def _dot_product(q, k, v, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    """q (B, H, T, d), k and v (B, H, S, d) -> (B, H, T, d).

    On a CPU PyTorch's function goes through the heads one by one, and its backward pass is ten times as slow
    in bf16 as in fp32. So there one product covers all heads. If it would have too many scores, PyTorch's
    function computes them in fp32.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        if q.shape[:-1].numel() * k.shape[2] > MAX_SCORES:
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask,
                                                  is_causal=causal)
        scores = (q.to(k.dtype) * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if causal:
            mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril_()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v


def gather(x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x (n, ...) -> x[index] (m, ...); `inverse` (n,) says where in the result each row of x is.

    With it the gradient is a gather too. That of plain indexing is a scatter, which is slower. The gradient
    is correct if rows that are taken more than once have a gradient of 0, as padding has.
    """
    return _Gather.apply(x, index, inverse)


class _Gather(Function):
    @staticmethod
    def forward(ctx, x, index, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, dy):
        return dy.index_select(0, *ctx.saved_tensors), None, None
