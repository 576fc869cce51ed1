"""The learning rate as a function of the step, and the optimizer: its groups, its step, clipping."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from omni.base.config import SCHEDULES
from omni.train import optim
from sft_omni import main


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


def trained(limit: float, waits: bool, gradients, max_bad: int = 10, losses=None):
    """Three weights after updates with these gradients, of which the third has none; and the figures."""
    torch.manual_seed(0)
    params = nn.ParameterList([torch.randn(3, 2) for _ in range(3)])
    update = optim.Update(optim.adamw([(params, 0.01)], 0.1, params), limit, max_bad)
    update.waits = waits
    figures = []
    for number, (first, second) in enumerate(gradients):
        params[0].grad, params[1].grad = first.clone(), second.clone()
        figures.append(update(losses[number] if losses else torch.tensor(2.0)))
        assert all(p.grad is None for p in params)
    return [p.detach() for p in params], figures


@pytest.mark.parametrize("limit", [0.5, 1e3])
@pytest.mark.parametrize("waits", [True, False])
def test_an_update_clips_as_torch_does(limit, waits):
    gradients = [(torch.randn(3, 2), torch.randn(3, 2)) for _ in range(4)]
    ours, figures = trained(limit, waits, gradients)
    torch.manual_seed(0)
    theirs = [nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), foreach=False)
    for (first, second), found in zip(gradients, figures, strict=True):
        theirs[0].grad, theirs[1].grad = first.clone(), second.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, limit)
        reference.step()
        torch.testing.assert_close(found, torch.tensor([2.0, float(norm), 1.0]))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q.detach())
    assert not torch.equal(ours[0], trained(limit, waits, [])[0][0])


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(waits, bad):
    """Neither the weights nor the moments nor their count of steps."""
    good = [(torch.randn(3, 2), torch.randn(3, 2)) for _ in range(3)]
    wrong = good[0] if bad == "loss" else (good[0][0], torch.full((3, 2), float("nan")))
    losses = [torch.tensor(x) for x in (2.0, float("inf") if bad == "loss" else 2.0, 2.0, 2.0)]
    with_bad, figures = trained(0.5, waits, [good[0], wrong, *good[1:]], losses=losses)
    without, _ = trained(0.5, waits, good)
    assert [float(f[2]) for f in figures] == [1, 0, 1, 1]
    assert all(map(torch.equal, with_bad, without))


def test_after_too_many_bad_steps_nothing_is_applied_any_more():
    """The loop reads later that the run should have ended: the weights must be those of that moment."""
    good = [(torch.randn(3, 2), torch.randn(3, 2)) for _ in range(4)]
    wrong = torch.full((3, 2), float("nan")), torch.ones(3, 2)
    _, figures = trained(0.5, False, [good[0], wrong, good[1], wrong, wrong, good[2]], max_bad=2)
    assert [float(f[2]) for f in figures] == [1, 0, 1, 0, 0, 0]
    kept, _ = trained(0.5, False, [good[0], wrong, good[1], wrong, wrong, good[2]], max_bad=2)
    assert all(map(torch.equal, kept, trained(0.5, False, good[:2])[0]))


def test_rates_on_the_device_train_as_numbers_do_and_are_numbers_in_a_checkpoint():
    torch.manual_seed(0)
    one, two = (nn.Linear(4, 4) for _ in range(2))
    two.load_state_dict(one.state_dict())
    optimizers = [optim.adamw([(module, 0.01)], 0.1, module) for module in (one, two)]
    optim.make_capturable(optimizers[0])
    rates = [group["lr"] for group in optimizers[0].param_groups]
    for factor in (0.1, 0.7):
        x = torch.randn(3, 4)
        for module, optimizer in zip((one, two), optimizers, strict=True):
            optim.set_lr(optimizer, factor)
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, two.weight)
    assert all(kept is group["lr"] for kept, group in zip(rates, optimizers[0].param_groups, strict=True))
    found = [[group["lr"] for group in optim.content(optimizer)["param_groups"]] for optimizer in optimizers]
    assert found[0] == pytest.approx(found[1]) and all(type(rate) is float for rate in found[0])


def test_the_audio_projector_has_a_rate_of_its_own(toy, tmp_path):
    """Against a run in which neither projector moves."""
    finals = []
    for key in ("projector_learning_rate", "audio_projector_learning_rate"):
        main(["--config", toy.write(tmp_path / key, num_epochs=1, **{key: 1e-12})])
        finals.append(torch.load(tmp_path / key / "out" / "omni_final.pt", weights_only=True)["projectors"])
    still, trained = finals
    moved = {name: float((trained[name] - still[name]).abs().max()) for name in still}
    assert max(change for name, change in moved.items() if "audio" in name) < 1e-6
    assert min(change for name, change in moved.items() if "vision" in name) > 1e-5
