"""Where the rows of a packed batch lie, and the bins that attention on a CPU copies them into."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch.nn import functional as F

# Bucket sizes per octave. For each size oneDNN compiles its products and a GPU captures a graph, so they must
# be few. With more sizes there is less padding to compute. Tokens cost most, so they have the most sizes.
TOKEN_BUCKETS, IMAGE_BUCKETS, AUDIO_BUCKETS, ANSWER_BUCKETS = 16, 8, 4, 4
BIN = 128  # tokens: rows of up to this length share bins


def bucket(size: int, per_octave: int, least: int = 32) -> int:
    """`size` rounded up to a bucket size. There are `per_octave` in each octave, at least `least` apart."""
    step = max(least, (1 << size.bit_length() - 1) // per_octave if size else 0)
    return -(-size // step) * step


@dataclass(frozen=True)
class BinGroup:
    """Bins of the same length. `mask` (bins, 1, length, length) is True where a query attends to a key.

    Without a mask each bin holds a single row, from its first slot on, so causal attention is enough.
    """

    bins: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Bins:
    """Rectangles that hold the rows of a layout, for attention without a kernel for packed rows.

    Short rows share a bin, a long row has its own. Each token has a slot in a bin. Empty slots hold the last
    token, which is padding; all padding tokens share one slot.
    """

    groups: tuple[BinGroup, ...]
    token_of_slot: torch.Tensor  # (slots,) int64, the slots of all groups end to end
    slot_of_token: torch.Tensor  # (N,) int64


@dataclass(frozen=True)
class PackedLayout:
    """Where the rows of N packed tokens lie. The last row is padding, so R is one more than the samples."""

    positions: torch.Tensor  # (N,) int64: position of each token in its row; 0 in the padding
    rows: torch.Tensor  # (N,) int64: row of each token
    cu_seqlens: torch.Tensor  # (R + 1,) int32: where each row begins, and N
    max_seqlen: int  # length of the longest row
    lengths: tuple[int, ...]  # of the samples' rows

    @cached_property
    def bins(self) -> Bins:
        """Made when it is first needed: a GPU with a kernel for packed rows never needs it."""
        return make_bins(self)


def packed_layout(lengths: Sequence[int], padding: int) -> PackedLayout:
    """The layout of rows of these `lengths`, then `padding` tokens."""
    sizes = torch.tensor([*lengths, padding])
    starts = F.pad(sizes.cumsum(0), (1, 0))
    rows = torch.repeat_interleave(sizes)
    positions = torch.arange(len(rows)) - starts[rows]
    positions[-padding:] = 0
    return PackedLayout(positions, rows, starts.int(), max(*lengths, padding) if lengths else padding,
                        tuple(lengths))


def make_bins(layout: PackedLayout) -> Bins:
    """The bins of a layout, on its device. In them all padding is one row of one token, the last."""
    device, N = layout.rows.device, len(layout.rows)
    rows, positions = layout.rows.cpu(), layout.positions.cpu()
    slots, groups = _first_slots([*layout.lengths, 1])
    slot_of_token = torch.tensor(slots)[rows] + positions
    count = sum(bins * length for bins, length in groups)
    token_of_slot = rows.new_full((count,), N - 1).index_copy_(0, slot_of_token, torch.arange(N))
    token_of_slot[slots[-1]] = N - 1
    bins, length = groups[-1]  # the only group whose bins are shared
    owners = torch.full((count,), -1).index_copy_(0, slot_of_token, rows)[-bins * length:].view(bins, length)
    mask = (owners[:, :, None] == owners[:, None]).tril_()[:, None]
    return Bins((*(BinGroup(*group, None) for group in groups[:-1]),
                 BinGroup(bins, length, mask.to(device))), token_of_slot.to(device), slot_of_token.to(device))


def _first_slots(sizes: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The first slot of each row, and (bins, length) of each group; the last group is that of shared bins.

    Rows longer than BIN have a bin each, in groups of similar length. The others share bins: the longest
    first, each in the bin where it leaves the least room.
    """
    by_length = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    short = [row for row in by_length if sizes[row] <= BIN]
    first_slots, slots, groups = [0] * len(sizes), 0, []
    for _, alike in groupby(by_length[:-len(short)], key=lambda row: (sizes[row] - 1).bit_length()):
        rows = list(alike)
        length = sizes[rows[0]]
        for row in rows:
            first_slots[row] = slots
            slots += length
        groups.append((len(rows), length))
    length = min(BIN, bucket(max(sizes[row] for row in short), TOKEN_BUCKETS))
    filled: list[int] = []  # slots of each bin
    for row in short:
        fitting = [number for number, used in enumerate(filled) if used + sizes[row] <= length]
        if not fitting:
            fitting = [len(filled)]
            filled.append(0)
        chosen = max(fitting, key=filled.__getitem__)
        first_slots[row] = slots + chosen * length + filled[chosen]
        filled[chosen] += sizes[row]
    return first_slots, [*groups, (len(filled), length)]
