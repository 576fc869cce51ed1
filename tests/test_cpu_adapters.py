"""Fused blocks whose weights are frozen, with and without adapters, against the plain blocks."""

import pytest
import torch
from test_cpu_block import WIDTH, is_fused, thinker
from torch.utils._python_dispatch import TorchDispatchMode

from omni.base.config import PROJECTIONS
from omni.data.layout import packed_layout
from omni.model import cpu_block
from omni.model.layers import LoRALinear
from omni.model.lora import add_adapters
from omni.model.thinker import Thinker

LAYOUT = packed_layout([5, 9, 140, 3], 2)
KEPT = [0, 3, 13, 70, 158, 158]


def adapted(targets, rank: int = 3, **options) -> Thinker:
    """All weights frozen, and adapters on the `targets` that do something."""
    model = thinker(**options)
    add_adapters(model, rank, 6.0, targets)
    for name, p in model.double().named_parameters():
        if "lora_" in name or "bias" in name:
            p.data.normal_(0, 0.3)
    return model


def results(model: Thinker, keep: list[int] | None = None) -> dict[str, torch.Tensor]:
    """The hidden states, and the gradients of inputs and weights by name."""
    torch.manual_seed(1)
    x = torch.randn(len(LAYOUT.rows), WIDTH, dtype=torch.float64, requires_grad=True)
    states = model.hidden(x, LAYOUT, None if keep is None else torch.tensor(keep))
    weight = torch.randn_like(states)
    weight[-2:] = 0  # padding
    model.zero_grad()
    (states * weight).sum().backward()
    return {"states": states[:-2].detach(), "x": x.grad,
            **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def equal_to_plain_blocks(model: Thinker, monkeypatch, keep: list[int] | None = None) -> None:
    assert is_fused(model, LAYOUT)
    fused = results(model, keep)
    monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    plain = results(model, keep)
    assert fused.keys() == plain.keys()
    assert fused.keys() == {"states", "x", *(n for n, p in model.named_parameters() if p.requires_grad)
                            } - {"embed_tokens.weight"}
    for name, wanted in plain.items():
        torch.testing.assert_close(fused[name], wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()),
                                   msg=lambda text, name=name: f"{name}: {text}")
        assert wanted.abs().max() > 0


@pytest.mark.parametrize("keep", [None, KEPT])
@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, {"qk_norm": False, "qkv_bias": True},
                                     {"kv_heads": 4}], ids=str)
@pytest.mark.parametrize("targets", [PROJECTIONS, (), ("q_proj", "v_proj"), ("k_proj", "o_proj", "up_proj"),
                                     *((name,) for name in PROJECTIONS)], ids=",".join)
def test_adapters_and_frozen_weights_give_the_results_of_plain_blocks(targets, options, keep, monkeypatch):
    equal_to_plain_blocks(adapted(targets, **options), monkeypatch, keep)


@pytest.mark.parametrize("trained", [
    ("self_attn.k_proj.bias",), ("mlp.up_proj.weight", "self_attn.v_proj.weight"),
    ("input_layernorm.weight",), ("self_attn.q_proj.lora_A",)], ids=str)
def test_any_weight_may_be_trained_beside_frozen_ones(trained, monkeypatch):
    model = adapted(["q_proj", "down_proj"], qk_norm=False, qkv_bias=True)
    model.requires_grad_(False)
    for layer in model.layers:
        for name in trained:
            layer.get_parameter(name).requires_grad_(True)
    equal_to_plain_blocks(model, monkeypatch)


def test_adapters_of_several_ranks_and_scales_are_joined(monkeypatch):
    model = adapted(["q_proj"])
    for layer in model.layers:
        for name, rank, alpha in (("k_proj", 1, 5.0), ("v_proj", 4, 2.0)):
            made = LoRALinear(getattr(layer.self_attn, name), rank, alpha).double()
            made.lora_B.data.normal_()
            setattr(layer.self_attn, name, made)
    equal_to_plain_blocks(model, monkeypatch)


class ProductSizes(TorchDispatchMode):
    """Collects the sizes of the results of matrix products."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if "mm" in function.__name__ and result.dim() == 2:
            self.sizes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("targets", [(), ("q_proj", "gate_proj"), PROJECTIONS], ids=len)
def test_no_gradient_of_a_frozen_weight_is_computed(targets):
    model = adapted(targets)
    x = torch.randn(len(LAYOUT.rows), WIDTH, dtype=torch.float64, requires_grad=True)
    weights = {tuple(p.shape) for p in model.parameters() if p.dim() == 2 and not p.requires_grad}
    for trains in (False, True):
        states = model.hidden(x, LAYOUT)
        with ProductSizes() as products:
            states.sum().backward()
        sizes = [size for size in products.sizes if size in weights or size[::-1] in weights]
        assert bool(sizes) == trains and len(products.sizes) >= 5 * len(model.layers)
        model.requires_grad_(True)


def halved(model: Thinker) -> Thinker:
    """Its frozen matrices in bf16, as a run keeps them."""
    for layer in model.layers:
        for name, p in layer.named_parameters():
            if p.dim() == 2 and "lora_" not in name:
                p.data = p.data.bfloat16()
    return model


@pytest.mark.parametrize("targets", [PROJECTIONS, ()], ids=len)
def test_frozen_matrices_in_bf16_are_multiplied_as_they_are(targets, monkeypatch):
    model = halved(adapted(targets).float())
    exact = adapted(targets).float()
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    x = torch.randn(len(LAYOUT.rows), WIDTH, requires_grad=True)

    def gradients(model, bf16: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states = model.hidden(x, LAYOUT)[:-2]
        return torch.cat([g.flatten() for g in torch.autograd.grad(
            states.square().sum(), [x, *(p for p in model.layers.parameters() if p.requires_grad)])])
    wanted, ours = gradients(exact, False), gradients(model, True)
    monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    plain = gradients(model, True)
    errors = [float((g - wanted).norm() / wanted.norm()) for g in (ours, plain)]
    assert errors[0] < 0.1 and errors[0] < 1.5 * errors[1] + 1e-3, errors


def test_frozen_matrices_in_bf16_are_not_copied():
    model = halved(adapted(["o_proj"]).float())
    x = torch.randn(len(LAYOUT.rows), WIDTH, requires_grad=True)
    kept = []
    with torch.autocast("cpu", torch.bfloat16), \
            torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        model.hidden(x, LAYOUT)
    for layer in model.layers:
        for projection in (layer.self_attn.o_proj, *layer.mlp.children()):
            assert projection.weight.data_ptr() in kept


def test_matrices_in_bf16_need_autocast_and_must_be_frozen():
    model = halved(adapted(()).float())
    assert not is_fused(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_fused(model)
        model.layers[0].mlp.up_proj.requires_grad_(True)
        assert not is_fused(model)


@torch.no_grad()
def test_the_cache_is_filled_as_by_plain_blocks(monkeypatch):
    model = adapted(PROJECTIONS, qk_norm=False, qkv_bias=True)
    x = torch.randn(len(LAYOUT.rows), WIDTH, dtype=torch.float64)
    caches = []
    for _ in range(2):
        caches.append(model.new_cache(5, 140, x))
        model.hidden(x, LAYOUT, torch.tensor(KEPT), caches[-1])
        monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    for ours, plain in zip(*caches, strict=True):
        torch.testing.assert_close(ours.keys, plain.keys, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(ours.values, plain.values, rtol=1e-9, atol=1e-10)
