"""The order in memory of the heads of packed tokens, for the fused blocks of `cpu_block`."""

from dataclasses import dataclass

import torch

from omni.data.layout import PackedLayout
from omni.model.layers import Attention, Rope


def products_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of products in a block whose residual stream is in `dtype`: that of autocast, if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype


@dataclass(frozen=True)
class BinnedHeads:
    """The heads of a group of bins as rows: all queries, then all keys, then all values.

    In each bin the query heads that share a key head are one after another, so that no key is copied.
    """

    bins: int
    length: int
    heads: int  # query heads per key head
    kv_heads: int
    mask: torch.Tensor  # (bins or 1, 1, length, length), added to scores

    @property
    def sizes(self) -> list[int]:
        """Rows of queries, of keys, of values."""
        keys = self.kv_heads * self.bins * self.length
        return [self.heads * keys, keys, keys]

    def rows(self, first: int, heads: int) -> torch.Tensor:
        """(bins * length, kv_heads * heads): the row of each head of each slot. `first` is the first row."""
        size = self.kv_heads * self.bins * heads * self.length
        numbers = torch.arange(first, first + size).view(self.kv_heads, self.bins, heads, self.length)
        return numbers.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)

    def heads_of_rows(self, slots: torch.Tensor, first: int, heads: int) -> torch.Tensor:
        """The head in each of these rows. A slot's first head is `first` plus `slots` (bins * length,)."""
        numbers = torch.arange(first, first + self.kv_heads * heads).view(self.kv_heads, 1, heads, 1)
        return (slots.view(self.bins, 1, self.length) + numbers).flatten()

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of sizes, d) -> queries (kv_heads * bins, heads * length, d), keys, values (.., length, d)."""
        q, k, v = x.split(self.sizes)
        return tuple(part.view(self.kv_heads * self.bins, -1, x.shape[-1]) for part in (q, k, v))

    def grid(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (kv_heads * bins, heads * length, length) in the shape that the mask is broadcast over."""
        return x.view(self.kv_heads, self.bins, self.heads, self.length, self.length)


@dataclass(frozen=True)
class Plan:
    """What all blocks of a step share: rotary tables, and the row of each head.

    A token has H + 2 K heads, those of its queries, keys and values. Heads are numbered token by token. Rows
    are those of `BinnedHeads`, group by group.
    """

    layout: PackedLayout
    dtype: torch.dtype
    eps: float
    heads: int  # H
    kv_heads: int  # K
    head_dim: int  # d
    rotations: torch.Tensor  # (N, 1, d / 2) complex
    rotations_back: torch.Tensor  # their inverse
    scales: torch.Tensor  # (H + K, 1): 1 / sqrt(d) of queries, 1 of keys
    order: torch.Tensor  # ((H + 2 K) * d,): the row of the joined projections of each output, see `of`
    order_back: torch.Tensor  # its inverse
    groups: tuple[BinnedHeads, ...]
    head_of_row: torch.Tensor  # (rows,)
    row_of_head: torch.Tensor  # (N * (H + 2 K),)
    query_of_row: torch.Tensor  # (query rows,): the same where only query heads are counted
    row_of_query: torch.Tensor  # (N * H,)

    @classmethod
    def of(cls, layout: PackedLayout, attention: Attention, eps: float, rope: Rope,
           dtype: torch.dtype) -> "Plan":
        """`rope` is the rotary table of the tokens, `dtype` that of the residual stream.

        In each head of queries and keys dimension i is followed by i + d / 2, which rotates with it.
        """
        dtype = products_dtype(dtype)
        H, K, d = attention.heads, attention.kv_heads, attention.head_dim
        groups, rows_of_slots, query_rows_of_slots, head_of_row, query_of_row = [], [], [], [], []
        rows = query_rows = 0  # of the groups before
        bins = layout.bins
        slots = bins.token_of_slot.split([group.bins * group.length for group in bins.groups])
        for group, tokens in zip(bins.groups, slots, strict=True):
            seen = torch.ones(1, 1, group.length, group.length, dtype=torch.bool).tril_() \
                if group.mask is None else group.mask
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
            binned = BinnedHeads(group.bins, group.length, H // K, K, mask)
            groups.append(binned)
            query_rows_of_slots.append(binned.rows(query_rows, H // K))
            query_of_row.append(binned.heads_of_rows(tokens * H, 0, H // K))
            query_rows += binned.sizes[0]
            parts = []
            for size, heads, first in zip(binned.sizes, (H // K, 1, 1), (0, H, H + K), strict=True):
                parts.append(binned.rows(rows, heads))
                head_of_row.append(binned.heads_of_rows(tokens * (H + 2 * K), first, heads))
                rows += size
            rows_of_slots.append(torch.cat(parts, dim=1))
        row_of_head, row_of_query = (torch.cat(table).index_select(0, bins.slot_of_token).flatten()
                                     for table in (rows_of_slots, query_rows_of_slots))
        rotations = torch.view_as_complex(torch.stack([table[:, None, :d // 2] for table in rope], dim=-1))
        order = torch.arange((H + 2 * K) * d)
        order[:(H + K) * d] = order[:(H + K) * d].view(-1, 2, d // 2).transpose(1, 2).flatten()
        scales = torch.tensor([d ** -0.5] * H + [1.0] * K, dtype=rope[0].dtype)[:, None]
        return cls(layout, dtype, eps, H, K, d, rotations, rotations.conj().resolve_conj(), scales,
                   order, order.argsort(), tuple(groups), torch.cat(head_of_row), row_of_head,
                   torch.cat(query_of_row), row_of_query)

    def by_group(self, x: torch.Tensor) -> list[tuple[torch.Tensor, BinnedHeads]]:
        """(rows, d) -> the rows of each group, with the group."""
        return [*zip(x.split([sum(group.sizes) for group in self.groups]), self.groups, strict=True)]
