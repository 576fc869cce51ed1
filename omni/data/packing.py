"""Packs rows of tokens end to end into a `Batch`, in a few bucket sizes, with bins for attention."""

from collections.abc import Sequence
from itertools import chain, groupby

import torch
from torch.nn import functional as F

from omni.data.batch import IGNORE, Batch, BinGroup, PackedLayout

# Bucket sizes per octave. For each size oneDNN compiles its products and a GPU captures a graph, so they must
# be few. With more sizes there is less padding to compute. Tokens cost most, so they have the most sizes.
TOKEN_BUCKETS, IMAGE_BUCKETS, AUDIO_BUCKETS, ANSWER_BUCKETS = 16, 8, 4, 4
BIN = 128  # tokens: rows of up to this length share bins

Row = tuple[list[int], list[int]]  # ids and labels of a sample


def bucket(size: int, per_octave: int, least: int = 32) -> int:
    """`size` rounded up to a bucket size. There are `per_octave` in each octave, at least `least` apart."""
    step = max(least, (1 << size.bit_length() - 1) // per_octave if size else 0)
    return -(-size // step) * step


def pack(rows: Sequence[Row], pad: int, prompts: bool = False) -> Batch:
    """A batch of text alone. `prompts` have no labels: their `answers` are the last tokens of the rows."""
    lengths = [len(ids) for ids, _ in rows]
    padding = bucket(sum(lengths) + 1, TOKEN_BUCKETS) - sum(lengths)  # at least one token
    ids = torch.tensor([*chain(*(ids for ids, _ in rows)), *[pad] * padding])
    labels = torch.tensor([*chain(*(labels for _, labels in rows)), *[IGNORE] * padding])
    layout = packed_layout(lengths, padding)
    if prompts:
        answers, counts = layout.cu_seqlens[1:-1].long() - 1, [0] * len(rows)
    else:
        answers = (labels != IGNORE).nonzero()[:, 0]
        counts = layout.rows[answers].bincount(minlength=len(rows)).tolist()
        answers = pad_index(answers, bucket(len(answers), ANSWER_BUCKETS), len(ids))
    none = torch.empty(0, dtype=torch.int64)
    return Batch(ids, labels, layout, answers, none, none, tuple(counts))


def pad_index(index: torch.Tensor, size: int, tokens: int) -> torch.Tensor:
    """(n,) -> (size,), padded with the last of the batch's `tokens`. ValueError if n is above `size`."""
    if len(index) > size:
        raise ValueError(f"{len(index)} tokens for {size} features")
    return F.pad(index, (0, size - len(index)), value=tokens - 1)


def packed_layout(lengths: Sequence[int], padding: int) -> PackedLayout:
    """The layout of rows of these `lengths`, then `padding` tokens."""
    sizes = torch.tensor([*lengths, padding])
    starts = F.pad(sizes.cumsum(0), (1, 0))
    rows = torch.repeat_interleave(sizes)
    tokens = torch.arange(len(rows))
    positions = tokens - starts[rows]
    positions[-padding:] = 0

    # In the bins all padding is one row of one token, the last.
    slots, groups = _bins([*lengths, 1])
    slot_of_token = torch.tensor(slots)[rows] + positions
    count = sum(bins * length for bins, length in groups)
    token_of_slot = tokens.new_full((count,), len(tokens) - 1).index_copy_(0, slot_of_token, tokens)
    token_of_slot[slots[-1]] = len(tokens) - 1
    bins, length = groups[-1]  # the only group whose bins are shared
    owners = torch.full((count,), -1).index_copy_(0, slot_of_token, rows)[-bins * length:].view(bins, length)
    mask = (owners[:, :, None] == owners[:, None]).tril_()[:, None]
    longest = max(*lengths, padding) if lengths else padding
    return PackedLayout(positions, rows, starts.int(), longest,
                        (*(BinGroup(*group, None) for group in groups[:-1]), BinGroup(bins, length, mask)),
                        token_of_slot, slot_of_token)


def _bins(sizes: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
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
