"""Each backend of `attend` against a loop in float64."""

import math

import pytest
import torch

from omni.data.batch import mapped
from omni.data.layout import packed_layout
from omni.model import attention
from omni.model.attention import DecodeLayout, FullLayout, attend

HEADS, WIDTH = 4, 8


def loop(q, k, v, seen) -> torch.Tensor:
    """q (T, H, d), k and v (S, K, d): one query and head at a time; `seen(t, s)` is the mask."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(len(q), q.shape[1], q.shape[2], dtype=torch.float64)
    for t in range(len(q)):
        keys = [s for s in range(len(k)) if seen(t, s)]
        for h in range(q.shape[1]):
            group = h // (q.shape[1] // k.shape[1])
            scores = torch.stack([q[t, h] @ k[s, group] / math.sqrt(q.shape[2]) for s in keys]).softmax(0)
            out[t, h] = sum(p * v[s, group] for p, s in zip(scores, keys, strict=True))
    return out.flatten(1)


def random(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=dtype) for shape in shapes]


def assert_near(fast: torch.Tensor, slow: torch.Tensor) -> None:
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)  # PyTorch's gets float32


@pytest.fixture(params=[attention.MAX_SCORES, 0], ids=["products", "scaled_dot_product_attention"])
def backend(request, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", request.param)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 9], [140, 3, 131]])
def test_packed_rows_in_bins(backend, kv_heads, lengths):
    layout = packed_layout(lengths, 4)
    N = sum(lengths) + 4
    q, k, v = random((N, HEADS, WIDTH), (N, kv_heads, WIDTH), (N, kv_heads, WIDTH))
    rows = layout.rows.tolist()
    if N < 50:
        slow = loop(q, k, v, lambda t, s: s <= t and rows[t] == rows[s])
    else:  # the loop over one row at a time
        starts = layout.cu_seqlens.tolist()
        slow = torch.cat([loop(q[a:b], k[a:b], v[a:b], lambda t, s: s <= t)
                          for a, b in zip(starts, starts[1:], strict=False)])
    true = sum(lengths)
    assert_near(attend(q, k, v, layout)[:true], slow[:true])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [None, [5, 3]])
def test_full_layout_attends_to_all_valid_positions(backend, kv_heads, lengths):
    q, k, v = random((2, 5, HEADS, WIDTH), (2, 5, kv_heads, WIDTH), (2, 5, kv_heads, WIDTH))
    valid = None if lengths is None else torch.arange(5) < torch.tensor(lengths)[:, None]
    fast = attend(q, k, v, FullLayout(valid))
    for row in range(2):
        slow = loop(q[row], k[row], v[row], lambda t, s, row=row: valid is None or bool(valid[row, s]))
        assert_near(fast[row], slow)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_new_token_attends_to_its_row_so_far(backend, kv_heads):
    positions, reach = torch.tensor([0, 6, 3]), 7
    q, k, v = random((3, 1, HEADS, WIDTH), (3, reach, kv_heads, WIDTH), (3, reach, kv_heads, WIDTH))
    fast = attend(q, k, v, DecodeLayout(positions, reach))
    for row, position in enumerate(positions.tolist()):
        slow = loop(q[row], k[row], v[row], lambda t, s, position=position: s <= position)
        assert_near(fast[row], slow)


def fake_kernel(q, k, v, starts_q, starts_k, max_q, max_k, *, window_size):
    """What torch's kernel for packed rows computes, according to its documentation."""
    assert starts_q.dtype == torch.int32 and torch.equal(starts_q, starts_k) and window_size == (-1, 0)
    assert int(starts_q[0]) == 0 and int(starts_q[-1]) == len(q), "tokens outside of all rows are undefined"
    assert int(starts_q.diff().max()) <= min(max_q, max_k)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    starts = starts_q.tolist()
    with torch.autocast("cpu", enabled=False):
        parts = [loop(q[a:b], k[a:b], v[a:b], lambda t, s: s <= t)
                 for a, b in zip(starts, starts[1:], strict=False)]
    return torch.cat(parts).unflatten(1, (-1, q.shape[2])).to(q.dtype)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 9], [2, 20]])
def test_the_kernel_for_packed_rows_is_called_as_documented(lengths, monkeypatch):
    """Without a GPU: the kernel is replaced by a loop. Under autocast norms may leave q and k in fp32."""
    layout, N = packed_layout(lengths, 6), sum(lengths) + 6
    q, k, v = random((N, HEADS, WIDTH), (N, 2, WIDTH), (N, 2, WIDTH), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        bins = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), layout)
        monkeypatch.setattr(attention, "has_packed_kernel", lambda _: True)
        monkeypatch.setattr(attention, "varlen_attn", fake_kernel)
        kernel = attend(q, k, v.bfloat16(), layout)
    true = sum(lengths)
    torch.testing.assert_close(kernel[:true].float(), bins[:true].float(), rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[1], [5, 1, 9], [140, 3, 131]])
def test_packed_rows_on_a_gpu(lengths):
    layout, N = packed_layout(lengths, 40), sum(lengths) + 40
    q, k, v = (x.cuda().bfloat16().requires_grad_() for x in random((N, 4, 32), (N, 2, 32), (N, 2, 32)))
    assert attention.has_packed_kernel(q)
    out = attend(q, k, v, mapped(layout, torch.Tensor.cuda))
    leaves = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    exact = attend(*leaves, layout)
    torch.testing.assert_close(out.cpu().double(), exact, rtol=2e-2, atol=2e-2)
    weight = torch.randn_like(exact)
    weight[sum(lengths):] = 0
    ours = torch.autograd.grad((out * weight.cuda()).sum(), (q, k, v))
    for a, b in zip(ours, torch.autograd.grad((exact * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=5e-2, atol=5e-2)
