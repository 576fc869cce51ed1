"""The loss over answer tokens against its definition, in one piece and in several."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from omni.base.config import ThinkerArch
from omni.data.batch import IGNORE
from omni.model import loss
from omni.model.thinker import Thinker

WIDTH, V = 16, 40


@pytest.fixture(params=[True, False], ids=["tied", "own head"])
def thinker(request):
    torch.manual_seed(0)
    arch = ThinkerArch(vocab_size=V, width=WIDTH, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=8,
                       tied_head=request.param)
    return Thinker(arch).double()


def by_definition(thinker, hidden, labels, smoothing):
    """(the plain loss, the loss whose gradient is wanted, right predictions)."""
    logits = hidden @ thinker.head_weight.t()
    plain = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    wanted = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    return plain, wanted, (logits.argmax(-1) == labels).sum()


@pytest.mark.parametrize("rows", [100, 4, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_and_gradients_equal_the_definition(thinker, monkeypatch, rows, smoothing):
    monkeypatch.setattr(loss, "MAX_LOGITS", rows * V)
    hidden = torch.randn(11, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (11,)).index_fill(0, torch.tensor([2, 10]), IGNORE)
    plain, wanted, right = by_definition(thinker, hidden, labels, smoothing)
    inputs = hidden, thinker.head_weight
    gradients = torch.autograd.grad(3 * wanted, inputs)
    found, hits = loss.answer_loss(thinker, hidden, labels, smoothing)
    torch.testing.assert_close(found, plain)
    assert int(hits) == int(right)
    for ours, theirs in zip(torch.autograd.grad(3 * found, inputs), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_piece_of_logits_is_larger_than_the_limit_and_none_is_kept(thinker, monkeypatch):
    monkeypatch.setattr(loss, "MAX_LOGITS", 3 * V)
    hidden = torch.randn(10, WIDTH, dtype=torch.float64, requires_grad=True)
    found, _ = loss.answer_loss(thinker, hidden, torch.zeros(10, dtype=torch.int64))
    assert [tuple(kept.shape) for kept in found.grad_fn.saved_tensors] == [(10, WIDTH), (V, WIDTH)]


def test_only_gradients_that_are_needed_are_computed(thinker):
    thinker.requires_grad_(False)
    hidden = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    found, _ = loss.answer_loss(thinker, hidden, torch.ones(5, dtype=torch.int64))
    assert found.grad_fn.saved_tensors[1] is None
    found.backward()
    assert hidden.grad.abs().sum() > 0 and thinker.head_weight.grad is None
    with torch.no_grad():
        assert loss.answer_loss(thinker, hidden, torch.ones(5, dtype=torch.int64))[0] == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_never_in_bf16(thinker, dtype):
    thinker.to(torch.float32)
    hidden = nn.Parameter(torch.randn(64, WIDTH).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = loss.answer_loss(thinker, hidden, torch.ones(64, dtype=torch.int64))
    exact, _, _ = by_definition(thinker, hidden.float(), torch.ones(64, dtype=torch.int64), 0.0)
    assert found.dtype == torch.float32 and abs(float(found - exact)) < 1e-2 * float(exact)
    found.backward()
    assert hidden.grad.dtype == dtype and thinker.head_weight.grad.dtype == torch.float32
