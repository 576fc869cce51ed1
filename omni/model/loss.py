"""The loss over answer tokens, without ever holding the logits of all of them; and what CTC needs."""

from collections.abc import Sequence

import torch
from torch.autograd import Function

from omni.data.batch import IGNORE
from omni.model.attention import compute_dtype
from omni.model.thinker import Thinker

MAX_LOGITS = 2 ** 25  # at once: 128 MB in float32


def answer_loss(thinker: Thinker, hidden: torch.Tensor, labels: torch.Tensor,
                label_smoothing: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over hidden states (A, D) with labels (A,), and how many are predicted exactly.

    Label smoothing (Szegedy et al. 2016) changes the gradient alone: the loss that is returned is the plain
    one.
    """
    return _LinearCrossEntropy.apply(hidden, thinker.head_weight, labels, label_smoothing)


class _LinearCrossEntropy(Function):
    """The head and the loss in one: the gradient of a piece's logits is used while they are there.

    So logits are computed once, in pieces of at most `MAX_LOGITS`, and autograd keeps none of them.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, smoothing: float):
        full, dtype, V = torch.promote_types(hidden.dtype, torch.float32), compute_dtype(hidden), len(weight)
        h, w = hidden.to(dtype), weight.to(dtype)
        needs_h, needs_w = ctx.needs_input_grad[:2]
        dh = torch.empty_like(hidden) if needs_h else None
        dw = torch.zeros_like(weight, dtype=full) if needs_w else None
        loss, right = hidden.new_zeros((), dtype=full), labels.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            rows = max(1, MAX_LOGITS // V)
            for start in range(0, len(labels), rows):
                part, target = h[start:start + rows], labels[start:start + rows]
                known = target != IGNORE
                column = target.clamp(min=0)[:, None]
                logits = (part @ w.t()).to(full)  # (n, V)
                right += (logits.argmax(-1) == target).sum()
                norms = logits.logsumexp(-1)
                loss += ((norms - logits.gather(1, column)[:, 0]) * known).sum()
                if needs_h or needs_w:
                    # In place: the probabilities, less the target's distribution.
                    slope = logits.sub_(norms[:, None]).exp_()
                    if smoothing:
                        slope.sub_(smoothing / V)
                    slope.scatter_add_(1, column, slope.new_full(column.shape, smoothing - 1))
                    slope = slope.mul_(known[:, None]).to(dtype)
                    if needs_h:
                        dh[start:start + rows] = slope @ w
                    if needs_w:
                        dw += slope.t() @ part
        ctx.save_for_backward(dh, dw)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx, dloss, _):
        dh, dw = ctx.saved_tensors
        return None if dh is None else dh * dloss, None if dw is None else dw * dloss, None, None


def ctc_frames(labels: Sequence[int]) -> int:
    """The least frames that CTC needs: one per label, and one more between equal neighbours.

    With fewer its loss is infinite.
    """
    return len(labels) + sum(a == b for a, b in zip(labels, labels[1:], strict=False))
