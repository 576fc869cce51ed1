"""The learning rate as a function of the step, and the optimizer: its groups, its step, clipping."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from omni.base.config import SCHEDULES
from omni.train import optim


def test_the_learning_rate_warms_up_then_follows_a_cosine_to_its_floor():
    factors = [optim.lr_factor(step, 1000, 100, 0.1) for step in range(1000)]
    assert factors[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert factors[100] == 1 and factors[550] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(a >= b for a, b in zip(factors[99:], factors[100:], strict=False))
    assert factors[325] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_is_constant_and_falls_in_the_last_fifth_and_constant_never_falls():
    factors = [optim.lr_factor(step, 1000, 100, 0.1, "wsd") for step in range(1000)]
    assert factors[:100] == [optim.lr_factor(step, 1000, 100, 0.1) for step in range(100)]
    assert set(factors[100:801]) == {1.0}
    assert factors[900] == pytest.approx(0.55) and factors[999] == pytest.approx(0.1 + 0.9 / 200)
    constant = [optim.lr_factor(step, 1000, 100, 0.1, "constant") for step in range(1000)]
    assert constant[:100] == factors[:100] and set(constant[100:]) == {1.0}


@given(st.integers(1, 200), st.integers(0, 300), st.floats(0, 1), st.sampled_from(SCHEDULES))
def test_the_rate_of_any_run_is_above_0_and_at_most_1(total, warmup, floor, schedule):
    factors = [optim.lr_factor(step, total, warmup, floor, schedule) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors) and factors[0] > 0 and max(factors) == 1


def test_groups_have_their_learning_rates_and_only_matrices_decay():
    first, second = nn.Linear(3, 2), nn.LayerNorm(2)
    optimizer = optim.adamw([(first, 0.1), (second, 0.2)], 0.5, nn.ModuleList([first, second]))
    found = {id(p): (g["peak_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {id(first.weight): (0.1, 0.5), id(first.bias): (0.1, 0), id(second.weight): (0.2, 0),
                     id(second.bias): (0.2, 0)}
    optim.set_lr(optimizer, 0.5)
    optim.set_lr(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.05, 0.1}


@pytest.mark.parametrize("fault", ["twice", "frozen"])
def test_a_parameter_in_two_groups_is_an_error_and_a_frozen_one_is_left_alone(fault):
    layer, other = nn.Linear(3, 2), nn.Linear(2, 2)
    root = nn.ModuleList([layer, other])
    if fault == "twice":
        with pytest.raises((AssertionError, ValueError)):
            optim.adamw([(layer, 0.1), (root, 0.1)], 0.0, root)
    else:
        other.requires_grad_(False)
        grouped = [p for g in optim.adamw([(root, 0.1)], 0.0, root).param_groups for p in g["params"]]
        assert {id(p) for p in grouped} == {id(layer.weight), id(layer.bias)}


def test_a_step_equals_plain_adamw():
    torch.manual_seed(0)
    fused, plain = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    plain.load_state_dict(fused.state_dict())
    ours = optim.adamw([(fused, 0.01)], 0.1, fused)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.98),
                                  foreach=False)
    for _ in range(5):
        x = torch.randn(3, 4)
        for module, optimizer in ((fused, ours), (plain, reference)):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(fused.weight, plain.weight, atol=1e-7)


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clipping_equals_that_of_torch_and_keeps_small_gradients(limit):
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.zeros(3, 2)) for _ in range(3)] for _ in range(2))
    for p, q in zip(ours[:2], theirs[:2], strict=True):  # the third has no gradient
        p.grad = torch.randn(3, 2)
        q.grad = p.grad.clone()
    before = [p.grad.clone() for p in ours[:2]]
    norm = optim.clip(ours, limit)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs, limit))
    assert norm == pytest.approx(float(torch.stack(before).norm()))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours[:2], theirs[:2], strict=True))
    assert torch.equal(ours[0].grad, before[0]) == (limit == 1e3) and ours[2].grad is None
