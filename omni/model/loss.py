"""The loss over answer tokens, without ever holding too many logits."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from omni.data.batch import IGNORE
from omni.model.thinker import Thinker

MAX_LOGITS = 2 ** 26  # at once: 256 MB in float32, and as much again of their gradient


def answer_loss(thinker: Thinker, hidden: torch.Tensor, labels: torch.Tensor,
                label_smoothing: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over hidden states (A, D) with labels (A,), and how many are predicted exactly.

    Too many logits are computed in pieces, and again in the backward pass. Label smoothing (Szegedy et al.
    2016) changes the gradient alone: the loss that is returned is the plain one.
    """
    rows = max(1, MAX_LOGITS // thinker.arch.vocab_size)
    if len(labels) <= rows:
        return _piece(thinker, hidden, labels, label_smoothing)
    pieces = zip(hidden.split(rows), labels.split(rows), strict=True)
    sums = [recomputed(_piece, thinker, *piece, label_smoothing, use_reentrant=False) for piece in pieces]
    return tuple(map(sum, zip(*sums, strict=True)))


def _piece(thinker: Thinker, hidden: torch.Tensor, labels: torch.Tensor,
           label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = thinker.logits(hidden).float()  # (n, V)
    logs = logits.log_softmax(-1)
    loss = F.nll_loss(logs, labels, reduction="sum", ignore_index=IGNORE)
    if label_smoothing:
        uniform = -(logs.mean(-1) * (labels != IGNORE)).sum()
        smooth = torch.lerp(loss, uniform, label_smoothing)
        loss = loss.detach() + (smooth - smooth.detach())  # exactly the plain value
    return loss, (logits.detach().argmax(-1) == labels).sum()
