"""The sampler: a pure function of (seed, k), even by weight, fair within a source."""

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.data.sampler import WeightedSampler

NAMES = "abcde"
weights_of_any_mix = st.lists(st.one_of(st.integers(1, 50), st.floats(0.001, 1).map(lambda x: round(x, 3))),
                              min_size=1, max_size=5).map(lambda ws: dict(zip(NAMES, ws, strict=False)))


def sampler(weights: dict, sizes=None, seed: int = 0) -> WeightedSampler:
    return WeightedSampler(sizes or dict.fromkeys(weights, 1000), weights, seed)


def drifts(weights: dict, count: int) -> dict[str, list[float]]:
    """For each source, draws of it among the first n minus n times its share, for n = 0..count."""
    deal = sampler(weights)
    names, total = [deal[k].source for k in range(count)], sum(weights.values())
    return {name: [drawn - n * weights[name] / total for n, drawn in
                   enumerate(accumulate((other == name for other in names), initial=0))] for name in weights}


@given(weights_of_any_mix, st.integers(0, 2**31), st.data())
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_seed_and_number_only(weights, seed, data):
    sizes = {name: data.draw(st.integers(1, 40)) for name in weights}
    numbers = data.draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
    inorder = [sampler(weights, sizes, seed)[k] for k in sorted(numbers)]
    one = sampler(weights, sizes, seed)
    anyhow = {k: one[k] for k in numbers}
    assert [anyhow[k] for k in sorted(numbers)] == inorder


@given(weights_of_any_mix, st.data())
@settings(max_examples=30, deadline=None)
def test_each_pass_over_a_source_is_a_permutation(weights, data):
    sizes = {name: data.draw(st.integers(1, 12)) for name in weights}
    deal, seen = sampler(weights, sizes), {}
    for k in range(400):
        draw = deal[k]
        seen.setdefault(draw.source, []).append(draw)
    for name, draws in seen.items():
        size = sizes[name]
        assert [d.passes for d in draws] == [i // size for i in range(len(draws))]
        for start in range(0, len(draws) - size + 1, size):
            assert sorted(d.index for d in draws[start:start + size]) == list(range(size))


def test_passes_come_in_different_orders():
    deal = sampler({"a": 1}, {"a": 50})
    passes = [[deal[k].index for k in range(p * 50, p * 50 + 50)] for p in range(3)]
    assert passes[0] != passes[1] != passes[2] != passes[0] and passes[0] != list(range(50))


def test_sources_of_one_size_come_in_different_orders():
    deal = sampler({"a": 1, "b": 1}, {"a": 50, "b": 50})
    orders = {}
    for k in range(100):
        orders.setdefault(deal[k].source, []).append(deal[k].index)
    assert orders["a"] != orders["b"]


def test_another_seed_gives_another_order():
    first, second = ([sampler({"a": 2, "b": 1}, seed=s)[k].index for k in range(50)] for s in (0, 1))
    assert first != second


@pytest.mark.parametrize("weights", [
    {"text_only": 0.4, "image_text": 0.3, "audio_text": 0.3},
    {"text_only": 0.3, "image_text": 0.2, "audio_text": 0.3, "image_audio_text": 0.2},
    {"a": 0.7, "b": 0.3}, {"a": 1, "b": 1}, {"a": 997, "b": 3}, {"a": 2, "b": 2, "c": 2}])
def test_any_window_of_these_mixes_is_within_one_sample_of_the_weights(weights):
    for drift in drifts(weights, 3000).values():
        assert max(drift) - min(drift) < 1 + 1e-9  # of a window: the difference of two prefixes


@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=25, deadline=None)
def test_any_window_of_two_sources_is_within_one_sample_of_the_weights(a, b):
    for drift in drifts({"a": a, "b": b}, 600).values():
        assert max(drift) - min(drift) < 1 + 1e-6 and max(map(abs, drift)) <= 0.5 + 1e-6


@given(weights_of_any_mix)
@settings(max_examples=40, deadline=None)
def test_any_mix_of_up_to_five_sources_stays_near_the_weights(weights):
    # A leaf's window is off by less than 1 + share * (its parent's); Huffman's inner shares are at most 2/3.
    for drift in drifts(weights, 500).values():
        assert max(drift) - min(drift) < 1 + 1 + 2 / 3 * (1 + 2 / 3)
        assert max(map(abs, drift)) < (1 + 1 + 2 / 3 * (1 + 2 / 3)) / 2


def test_no_drift_however_long_the_run():
    deal, start = sampler({"a": 0.4, "b": 0.3, "c": 0.3}), 10**15
    drawn = [deal[start + k].source for k in range(1000)]
    assert drawn.count("a") == 400 and drawn.count("b") == 300


def test_a_zero_weight_leaves_a_source_out():
    deal = sampler({"a": 1, "b": 0, "c": 2})
    assert {deal[k].source for k in range(500)} == {"a", "c"}
    with pytest.raises(ValueError):
        sampler({"a": 0, "b": 0})


def test_only_the_ratio_of_weights_matters():
    first, second = sampler({"a": 0.2, "b": 0.6}), sampler({"a": 1, "b": 3})
    numbers = random.Random(0).sample(range(10**6), 200)
    assert [first[k] for k in numbers] == [second[k] for k in numbers]
