"""The layers against slow references in float64, written as loops."""

import math

import pytest
import torch
from reference import packed, unpacked
from torch.nn import functional as F

from omni.base.config import ThinkerArch
from omni.data.layout import packed_layout
from omni.model.attention import FullLayout, attend
from omni.model.layers import Attention, RMSNorm, SwiGLU, apply_rope, rope_table
from omni.model.thinker import Thinker


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def rotate(x: torch.Tensor, position: int, theta: float = 10000.0) -> torch.Tensor:
    """Each pair (i, i + half) of one head rotated by position / theta ** (2 i / head_dim)."""
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def slow_attention(layer: Attention, x: torch.Tensor, rope: bool, seen) -> torch.Tensor:
    """One row at a time, head by head; `seen(b, t, s)`: whether query t of row b attends to key s."""
    B, T, _ = x.shape
    d, out = layer.head_dim, torch.zeros_like(x)
    for b in range(B):
        def heads(projection, norm, count, b=b):
            y = (x[b] @ projection.weight.T).view(T, count, d)
            for t in range(T):
                for h in range(count):
                    if norm is not None:
                        y[t, h] = rms_norm(y[t, h], norm.weight)
                    if rope:
                        y[t, h] = rotate(y[t, h], t)
            return y
        normed = isinstance(layer.q_norm, RMSNorm)
        q = heads(layer.q_proj, layer.q_norm if normed else None, layer.heads)
        k = heads(layer.k_proj, layer.k_norm if normed else None, layer.kv_heads)
        v = (x[b] @ layer.v_proj.weight.T).view(T, layer.kv_heads, d)
        for t in range(T):
            mixed = []
            for h in range(layer.heads):
                group = h // (layer.heads // layer.kv_heads)
                keys = [s for s in range(T) if seen(b, t, s)]
                scores = torch.stack([q[t, h] @ k[s, group] / math.sqrt(d) for s in keys]).softmax(0)
                mixed.append(sum(w * v[s, group] for w, s in zip(scores, keys, strict=True)))
            out[b, t] = torch.cat(mixed) @ layer.o_proj.weight.T
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("mode", ["packed", "valid", "all"])
@torch.no_grad()
def test_attention_equals_a_loop(kv_heads, qk_norm, rope, mode):
    torch.manual_seed(0)
    layer = Attention(16, 4, kv_heads, 6, qk_norm).double()
    for name, p in layer.named_parameters():
        if "norm" in name:
            p.uniform_(0.5, 2)
    x, lengths = torch.randn(2, 5, 16, dtype=torch.float64), [5, 3]

    def attention(x, table, layout):
        return layer.o_proj(attend(*layer.project(x, table), layout))
    slow = slow_attention(layer, x, rope, lambda b, t, s: {
        "packed": s <= t, "valid": s < lengths[b], "all": True}[mode])
    if mode == "packed":
        layout = packed_layout(lengths, 2)
        table = tuple(t.double() for t in rope_table(layout.positions, 6)) if rope else None
        fast = unpacked(layout, attention(packed(layout, x), table, layout))
    else:
        table = tuple(t.double() for t in rope_table(torch.arange(5), 6)) if rope else None
        valid = torch.arange(5) < torch.tensor(lengths)[:, None] if mode == "valid" else None
        fast = attention(x, table, FullLayout(valid))
    for row, wanted in zip(fast, slow, strict=True):
        assert (row - wanted[:len(row)]).abs().max() < 1e-6  # the rotary table is float32


@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_rope_rotates_each_pair_by_its_angle(theta):
    x = torch.randn(1, 40, 2, 8, dtype=torch.float64)
    rotated = apply_rope(x, tuple(t.double() for t in rope_table(torch.arange(40), 8, theta)))
    for t in range(40):
        for h in range(2):
            assert torch.allclose(rotated[0, t, h], rotate(x[0, t, h], t, theta), atol=1e-5)


def test_rope_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8)
    def score(i, j):
        rotated = (apply_rope(x, rope_table(torch.tensor([at]), 8)) for x, at in ((q, i), (k, j)))
        return math.prod(rotated).sum()
    assert torch.isclose(score(3, 1), score(103, 101), atol=1e-4)
    assert not torch.isclose(score(3, 1), score(3, 2), atol=1e-3)


def test_rms_norm_equals_its_formula():
    norm = RMSNorm(12, eps=1e-3).double()
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    x = torch.randn(3, 12, dtype=torch.float64)
    for row, out in zip(x, norm(x), strict=True):
        assert torch.allclose(out, rms_norm(row, norm.weight, 1e-3), atol=1e-12)


def test_swiglu_equals_its_formula():
    layer = SwiGLU(6, 10).double()
    x = torch.randn(6, dtype=torch.float64)
    gate, up = layer.gate_proj.weight @ x, layer.up_proj.weight @ x
    gate, up = gate.detach(), up.detach()
    hidden = torch.stack([g / (1 + math.exp(-float(g))) * u for g, u in zip(gate, up, strict=True)])
    assert torch.allclose(layer(x), layer.down_proj.weight @ hidden, atol=1e-12)


@pytest.mark.parametrize("qk_norm, tied", [(True, True), (True, False), (False, True), (False, False)])
def test_names_are_those_of_llama_and_qwen3(qk_norm, tied):
    arch = ThinkerArch(vocab_size=20, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=24,
                       qk_norm=qk_norm, tied_head=tied)
    parts = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
             "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
             "mlp.down_proj": (16, 24), "input_layernorm": (16,), "post_attention_layernorm": (16,)}
    if qk_norm:
        parts |= {"self_attn.q_norm": (4,), "self_attn.k_norm": (4,)}
    wanted = {f"layers.{i}.{name}.weight": shape for i in range(2) for name, shape in parts.items()}
    wanted |= {"embed_tokens.weight": (20, 16), "norm.weight": (16,)}
    wanted |= {} if tied else {"lm_head.weight": (20, 16)}
    assert {name: tuple(p.shape) for name, p in Thinker(arch).state_dict().items()} == wanted


def test_the_thinker_is_causal():
    torch.manual_seed(0)
    arch = ThinkerArch(vocab_size=20, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=24)
    thinker, layout = Thinker(arch), packed_layout([7], 1)
    x = torch.randn(8, 16)
    changed = x.clone()
    changed[4:7] += 1
    before, after = thinker.hidden(x, layout), thinker.hidden(changed, layout)
    assert torch.equal(before[:4], after[:4])
    assert not F.cosine_similarity(before[4:7], after[4:7]).gt(0.9999).any()
