"""The Thinker over packed tokens, with plain and with fused blocks, against padded rows."""

import gc

import pytest
import torch
from reference import packed, padded_hidden, slices, unpacked
from torch import nn

from omni.base.config import ThinkerArch
from omni.data.layout import packed_layout
from omni.model import cpu_block
from omni.model.attention import DecodeLayout
from omni.model.cpu_plan import Plan
from omni.model.layers import LayerCache, rope_table
from omni.model.thinker import Thinker

WIDTH = 16


def thinker(qk_norm: bool = True, kv_heads: int = 2, qkv_bias: bool = False, **options) -> Thinker:
    torch.manual_seed(0)
    made = Thinker(ThinkerArch(vocab_size=20, width=WIDTH, layers=2, heads=4, kv_heads=kv_heads, head_dim=4,
                               mlp_width=24, qk_norm=qk_norm, qkv_bias=qkv_bias), **options).double()
    for name, p in made.named_parameters():
        p.data.uniform_(0.5, 2) if "norm" in name else p.data.mul_(8)  # attention far from uniform
    return made


@pytest.fixture(params=["plain blocks", "fused blocks"])
def blocks(request, monkeypatch):
    if request.param == "plain blocks":
        monkeypatch.setattr(cpu_block, "fused", lambda *_: None)


def is_fused(model: Thinker, layout=None) -> bool:
    layout = layout or packed_layout([5, 9], 2)
    x = torch.zeros(len(layout.rows), WIDTH, dtype=next(model.parameters()).dtype)
    return cpu_block.fused(model.layers, x, rope_table(layout.positions, 4), layout) is not None


def test_a_thinker_gets_fused_blocks():
    for model in (thinker(), thinker(qk_norm=False), thinker().float()):
        assert is_fused(model)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [[1], [7, 30, 9, 60, 33], [64] * 4, [5, 140, 17, 200, 131, 128, 270]])
def test_packed_rows_give_the_results_of_padded_rows(blocks, qk_norm, kv_heads, lengths):
    """The kept hidden states, and the gradients of weights and embeddings."""
    model, layout = thinker(qk_norm, kv_heads), packed_layout(lengths, 5)
    embeds = torch.randn(len(lengths), max(lengths), WIDTH, dtype=torch.float64, requires_grad=True)
    kept = torch.randperm(sum(lengths))[:40]
    weight = torch.randn(len(kept), WIDTH, dtype=torch.float64)
    padded = packed(layout, padded_hidden(model, embeds))[kept]
    padding = torch.full((3,), len(layout.rows) - 1)
    ours = model.hidden(packed(layout, embeds), layout, torch.cat((kept, padding)))[:-3]
    leaves = [embeds, *model.layers.parameters(), model.norm.weight]
    whole, found = (torch.autograd.grad((states * weight).sum(), leaves) for states in (padded, ours))
    torch.testing.assert_close(ours, padded, rtol=1e-4, atol=1e-5)  # the rotary table is float32
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) + 1e-5)


class LowRank(nn.Module):
    """A wrapped projection, as adapters wrap them: it has the `weight` of the one inside, and adds to it."""

    def __init__(self, inside: nn.Linear):
        super().__init__()
        self.inside, self.weight = inside, inside.weight
        self.down = nn.Linear(inside.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, inside.out_features, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.inside(x) + self.up(self.down(x))


def biased(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(linear.in_features, linear.out_features, dtype=torch.float64)
    made.weight.data.copy_(linear.weight)
    return made


def replace_projection(model: Thinker, name: str, change) -> None:
    part, _, projection = name.partition(".")
    module = getattr(model.layers[1], part)
    setattr(module, projection, change(getattr(module, projection)))


PROJECTIONS = [*(f"self_attn.{name}_proj" for name in "qkvo"),
               *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


@pytest.mark.parametrize("change", [biased, LowRank])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_biases_and_wrapped_projections_are_never_ignored(change, name):
    model, plain, lengths = thinker(), thinker(), [7, 12]
    replace_projection(model, name, change)
    layout = packed_layout(lengths, 3)
    embeds = torch.randn(2, 12, WIDTH, dtype=torch.float64)
    found = unpacked(layout, model.hidden(packed(layout, embeds), layout))
    references = padded_hidden(model, embeds), padded_hidden(plain, embeds)
    for row, wanted, without in zip(found, *references, strict=True):
        torch.testing.assert_close(row, wanted[:len(row)], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(row, without[:len(row)], rtol=1e-2)  # the change matters


@pytest.mark.parametrize("frozen", [*PROJECTIONS, "input_layernorm", "self_attn.q_norm", ""])
def test_weights_without_gradient_get_none(frozen):
    model, layout = thinker(), packed_layout([7, 12], 3)
    for layer in model.layers:
        layer.get_submodule(frozen).requires_grad_(False)
    assert is_fused(model)
    x = torch.randn(len(layout.rows), WIDTH, dtype=torch.float64, requires_grad=True)
    model.hidden(x, layout).sum().backward()
    assert x.grad.abs().max() > 0
    for name, p in model.layers.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


@pytest.mark.parametrize("change", [
    lambda model: model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None),
    lambda model: model.layers[0].register_forward_pre_hook(lambda *_: None),
    lambda model: nn.utils.parametrizations.weight_norm(model.layers[1].mlp.gate_proj),
    lambda model: setattr(model.layers[1].input_layernorm, "eps", 1e-3),
    lambda model: model.layers[1].mlp.half(),
    lambda model: setattr(model.layers[0], "mlp", nn.Identity())],
    ids=["hook", "pre-hook", "parametrization", "another eps", "half precision", "another module"])
def test_unusual_blocks_are_not_fused(change):
    model = thinker()
    change(model)
    assert not is_fused(model)


def test_blocks_are_not_fused_for_very_long_rows():
    assert not is_fused(thinker(), packed_layout([3, cpu_block.LONGEST + 1], 2))
    assert is_fused(thinker(), packed_layout([3, cpu_block.LONGEST], 2))


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kept", [None, [0, 3, 7, 15, 15]])
def test_the_gradient_of_a_fused_block_equals_finite_differences(qk_norm, kept):
    model, layout = thinker(qk_norm), packed_layout([5, 2, 4], 5)
    x = torch.randn(len(layout.rows), WIDTH, dtype=torch.float64, requires_grad=True)
    rope = tuple(table.double() for table in rope_table(layout.positions, 4))
    layer, keep = model.layers[0], None if kept is None else torch.tensor(kept)
    plan = Plan.of(layout, layer.self_attn, 1e-6, rope, torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)
    seen = slice(11) if keep is None else slice(3)

    class Run(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return cpu_block._run(self.layer, plan, x, rope, layout, None, keep)

    def block(x, *values):
        changed = {f"layer.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Run(), changed, (x,))[seen]
    assert torch.autograd.gradcheck(block, (x, *values), fast_mode=True)


def test_samples_of_a_batch_do_not_affect_each_other(blocks):
    """Equal to the bit if the sizes are the same: masked scores are exactly 0 after the softmax."""
    lengths = [20, 31, 150, 12, 140]
    model, layout = thinker(), packed_layout(lengths, 3)
    embeds = torch.randn(len(lengths), 150, WIDTH, dtype=torch.float64)
    before = unpacked(layout, model.hidden(packed(layout, embeds), layout))
    for row in range(len(lengths)):
        changed = embeds.clone()
        changed[row] += 3
        after = unpacked(layout, model.hidden(packed(layout, changed), layout))
        for other in range(len(lengths)):
            assert torch.equal(after[other], before[other]) == (other != row)


@torch.no_grad()
def test_hidden_states_with_the_cache_equal_those_of_whole_rows(blocks):
    """A packed prompt, then token by token."""
    model, lengths = thinker(), torch.tensor([20, 1, 150, 12])
    layout, longest, B = packed_layout(lengths.tolist(), 9), 150, 4
    embeds = torch.randn(B, longest + 4, WIDTH, dtype=torch.float64)
    cache = model.new_cache(B + 1, longest + 4, embeds)
    ends = torch.tensor([part.stop - 1 for part in slices(layout)])
    got = [model.hidden(packed(layout, embeds), layout, ends, cache)]
    cache = [LayerCache(layer.keys[:B], layer.values[:B]) for layer in cache]
    for t in range(4):
        new = embeds[torch.arange(B), lengths + t]
        got.append(model.decode(new, cache, DecodeLayout(lengths + t, longest + t + 1)))
    whole = padded_hidden(model, embeds)
    for t, states in enumerate(got):
        torch.testing.assert_close(states, whole[torch.arange(B), lengths - 1 + t], rtol=1e-4, atol=1e-4)


def test_bf16_is_as_near_to_fp32_as_with_plain_blocks(monkeypatch):
    lengths = [20, 31, 150, 12, 140]
    model, layout = thinker().float(), packed_layout(lengths, 3)
    x = packed(layout, torch.randn(len(lengths), 150, WIDTH))

    def gradients(bf16: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states = model.hidden(x, layout)[:-3]
        return torch.cat([g.flatten() for g in torch.autograd.grad(states.square().sum(),
                                                                   [*model.layers.parameters()])])
    exact, ours = gradients(False), gradients(True)
    monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    plain = gradients(True)
    errors = [float((g - exact).norm() / exact.norm()) for g in (ours, plain)]
    assert errors[0] < 0.05 and errors[0] < 2 * errors[1] + 1e-3, errors


def live_bytes() -> int:
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_a_fused_block_keeps_no_tensors_under_activation_checkpointing():
    """Autograd drops what is saved with save_for_backward, but not other attributes of the context."""
    model, layout = thinker(activation_checkpointing=True), packed_layout([128] * 8, 32)
    x = torch.randn(len(layout.rows), WIDTH, dtype=torch.float64)
    before = live_bytes()
    states = model.hidden(x, layout)
    shared = layout.bins.groups[-1]
    one_block = 4 * shared.bins * shared.length ** 2 * 8  # bytes of its attention probabilities
    assert live_bytes() - before < one_block / 2
    states.sum().backward()
