"""The true tokens of a batch end to end, so that nothing is computed on padding; bins for attention."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch.autograd import Function
from torch.nn import functional as F

STEP = 32  # tokens: the least that sizes are apart
BIN = 128  # tokens: rows that are no longer share bins


def rounded_up(size: int) -> int:
    """The next of 32 sizes an octave, for each size that is new makes oneDNN compile its products anew."""
    step = max(STEP, 1 << size.bit_length() >> 6)
    return -(-size // step) * step


class Take(Function):
    """x (n, ...) -> x[there] (m, ...); `here` (n,) says which of the m brings each row of x its gradient.

    So the gradient is gathered too, where that of indexing would be scattered: right wherever what is taken
    more than once has a gradient of 0, as padding has.
    """

    @staticmethod
    def forward(ctx, x, there, here):
        ctx.save_for_backward(here)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, dy):
        return dy.index_select(0, *ctx.saved_tensors), None, None


@dataclass(frozen=True)
class Group:
    """`bins` of `length` places each; `mask` (bins, 1, length, length) is True where a query may look.

    Without one each bin begins with its only row, and causal attention is enough.
    """

    bins: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Packing:
    """The N tokens of a right-padded (B, T) batch, row after row, and spare ones behind them.

    At least one is spare, and N is `rounded_up`. Attention sees the tokens in bins: rows of up to BIN tokens
    share bins; longer rows have one each, in groups of like length. What is left of a bin, and one place at
    least, holds the last spare token; it stands for all of them.
    """

    rows: torch.Tensor  # (N - spare,) of 0 .. B - 1
    positions: torch.Tensor  # (N,) of 0 .. T - 1; 0 of spare ones
    spare: int
    groups: tuple[Group, ...]
    there: torch.Tensor  # (P,) the token at each place of the groups' bins, end to end
    here: torch.Tensor  # (N,) the place of each token among those

    @classmethod
    def of(cls, lengths: torch.Tensor) -> "Packing":
        """Of rows of `lengths` (B,)."""
        device, sizes = lengths.device, lengths.tolist()
        spare = rounded_up(sum(sizes) + 1) - sum(sizes)
        sizes.append(1)
        by_length = sorted(range(len(sizes)), key=lambda row: -sizes[row])
        short = [row for row in by_length if sizes[row] <= BIN]
        begins, places, groups = [0] * len(sizes), 0, []  # of each row among the places
        for _, alike in groupby(by_length[:-len(short)], key=lambda row: (sizes[row] - 1).bit_length()):
            rows = list(alike)
            longest = sizes[rows[0]]
            for row in rows:
                begins[row], places = places, places + longest
            groups.append((len(rows), longest))
        length = rounded_up(sizes[short[0]])
        ends: list[int] = []  # of what each bin holds so far
        for row in short:  # the longest first, each where it leaves the least room
            fitting = [bin for bin, end in enumerate(ends) if end + sizes[row] <= length]
            if not fitting:
                fitting = [len(ends)]
                ends.append(0)
            bin = max(fitting, key=ends.__getitem__)
            begins[row] = places + bin * length + ends[bin]
            ends[bin] += sizes[row]
        shared = slice(places, places + len(ends) * length)

        rows = torch.repeat_interleave(torch.tensor(sizes))  # of each token, and of one spare one
        numbers, sizes = torch.arange(len(rows)), torch.tensor(sizes)
        positions = numbers - (sizes.cumsum(0) - sizes)[rows]
        here = torch.tensor(begins)[rows] + positions
        last = len(rows) + spare - 2
        numbers[-1] = last
        there = numbers.new_full((shared.stop,), last).index_copy_(0, here, numbers)
        owners = numbers.new_full((shared.stop,), -1).index_copy_(0, here, rows)[shared].view(-1, length)
        mask = (owners[:, :, None] == owners[:, None]).tril_()[:, None]
        here = torch.cat((here, here[-1:].expand(spare - 1)))
        return cls(rows[:-1].to(device), F.pad(positions, (0, spare - 1)).to(device), spare,
                   (*(Group(*group, None) for group in groups), Group(len(ends), length, mask.to(device))),
                   there.to(device), here.to(device))

    def pack(self, x: torch.Tensor, fill: int) -> torch.Tensor:
        """(B, T) -> (N,), `fill` in the spare ones."""
        return F.pad(x[self.rows, self.true(self.positions)], (0, self.spare), value=fill)

    def true(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N - spare, ...)."""
        return x[:len(self.rows)]

    def ends(self) -> torch.Tensor:
        """(B,) the last token of each row."""
        return self.rows.bincount().cumsum(0) - 1

    def binned(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(N, ...) -> for each group (bins, length, ...)."""
        parts = Take.apply(x, self.there, self.here).split([g.bins * g.length for g in self.groups])
        return [part.unflatten(0, (g.bins, g.length)) for part, g in zip(parts, self.groups, strict=True)]

    def unbinned(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The inverse of `binned`."""
        return Take.apply(torch.cat([part.flatten(0, 1) for part in parts]), self.here, self.there)
