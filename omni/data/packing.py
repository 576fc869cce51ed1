"""Packs rows of tokens end to end into a `Batch`, in a few bucket sizes."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch.nn import functional as F

from omni.data.batch import IGNORE, Batch
from omni.data.layout import ANSWER_BUCKETS, TOKEN_BUCKETS, bucket, packed_layout

Row = tuple[list[int], list[int]]  # ids and labels of a sample


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
