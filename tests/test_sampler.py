"""The sampler: a pure function of (seed, k), close to the weights, fair within a source, fast."""

import hashlib
import pickle
import random
from itertools import accumulate

import numpy as np
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
    """{source: its draws among the first n, less n times its share, for n = 0..count}."""
    draws = sampler(weights)
    names, total = [draws[k].source for k in range(count)], sum(weights.values())
    return {name: [drawn - n * weights[name] / total for n, drawn in
                   enumerate(accumulate((other == name for other in names), initial=0))] for name in weights}


@given(weights_of_any_mix, st.integers(0, 2**31), st.data())
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_seed_and_number_only(weights, seed, data):
    sizes = {name: data.draw(st.integers(1, 40)) for name in weights}
    numbers = data.draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
    one = sampler(weights, sizes, seed)
    assert [one[k] for k in numbers] == [sampler(weights, sizes, seed)[k] for k in numbers]


def test_the_order_is_the_same_as_in_earlier_versions():
    """A run that an earlier version began must go on with the same draws."""
    draws = sampler({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0}, {"a": 7, "b": 1000, "c": 12, "d": 5}, seed=3)
    text = "".join(f"{d.source}{d.index}.{d.passes} " for d in (draws[k] for k in range(3000)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "701826340f2fc615"
    assert [draws[10**6].source, draws[10**6].index, draws[10**6].passes] == ["a", 1, 63492]


@given(weights_of_any_mix, st.data())
@settings(max_examples=30, deadline=None)
def test_each_pass_over_a_source_is_a_permutation(weights, data):
    sizes = {name: data.draw(st.integers(1, 12)) for name in weights}
    draws, by_source = sampler(weights, sizes), {}
    for k in range(400):
        by_source.setdefault(draws[k].source, []).append(draws[k])
    for name, drawn in by_source.items():
        size = sizes[name]
        assert [d.passes for d in drawn] == [i // size for i in range(len(drawn))]
        for start in range(0, len(drawn) - size + 1, size):
            assert sorted(d.index for d in drawn[start:start + size]) == list(range(size))


def test_each_pass_has_another_order():
    draws = sampler({"a": 1}, {"a": 50})
    passes = [[draws[k].index for k in range(p * 50, p * 50 + 50)] for p in range(3)]
    assert passes[0] != passes[1] != passes[2] != passes[0] and passes[0] != list(range(50))


def test_sources_of_equal_size_have_different_orders():
    draws = sampler({"a": 1, "b": 1}, {"a": 50, "b": 50})
    orders = {}
    for k in range(100):
        orders.setdefault(draws[k].source, []).append(draws[k].index)
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
        assert max(drift) - min(drift) < 1 + 1e-9  # a window is the difference of two prefixes


@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=25, deadline=None)
def test_any_window_of_two_sources_is_within_one_sample_of_the_weights(a, b):
    for drift in drifts({"a": a, "b": b}, 600).values():
        assert max(drift) - min(drift) < 1 + 1e-6 and max(map(abs, drift)) <= 0.5 + 1e-6


@given(weights_of_any_mix)
@settings(max_examples=40, deadline=None)
def test_any_mix_of_up_to_five_sources_stays_close_to_the_weights(weights):
    # A window of a leaf is off by less than 1 + its share of its parent's error; a Huffman tree's inner nodes
    # have shares of at most 2/3.
    for drift in drifts(weights, 500).values():
        assert max(drift) - min(drift) < 1 + 1 + 2 / 3 * (1 + 2 / 3)
        assert max(map(abs, drift)) < (1 + 1 + 2 / 3 * (1 + 2 / 3)) / 2


def test_no_drift_however_long_the_run():
    draws, start = sampler({"a": 0.4, "b": 0.3, "c": 0.3}), 10**15
    drawn = [draws[start + k].source for k in range(1000)]
    assert drawn.count("a") == 400 and drawn.count("b") == 300


def test_a_source_of_weight_0_is_not_drawn():
    draws = sampler({"a": 1, "b": 0, "c": 2})
    assert {draws[k].source for k in range(500)} == {"a", "c"}
    with pytest.raises(ValueError):
        sampler({"a": 0, "b": 0})


def test_only_the_ratio_of_weights_matters():
    first, second = sampler({"a": 0.2, "b": 0.6}), sampler({"a": 1, "b": 3})
    numbers = random.Random(0).sample(range(10**6), 200)
    assert [first[k] for k in numbers] == [second[k] for k in numbers]


def count_permutations(monkeypatch) -> list:
    """The seeds of the permutations made from now on, one entry each time one is made."""
    made, default_rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(tuple(seed)) or default_rng(seed))
    return made


@pytest.mark.parametrize("sources", [1, 17, 200])
@pytest.mark.parametrize("chunk", [1, 64])  # draws of one step may be asked for in any order
def test_each_permutation_is_made_once_however_many_sources_there_are(monkeypatch, sources, chunk):
    weights = {str(i): 1 + i % 5 for i in range(sources)}
    sizes = {str(i): 80 + i % 40 for i in range(sources)}
    draws, made, shuffled = sampler(weights, sizes), count_permutations(monkeypatch), random.Random(0)
    passes = {}
    for start in range(0, sources * 400, chunk):
        numbers = list(range(start, start + chunk))
        shuffled.shuffle(numbers)
        for k in numbers:
            draw = draws[k]
            passes.setdefault(draw.source, set()).add(draw.passes)
    assert all(len(p) > 1 for p in passes.values())  # pass boundaries were crossed
    assert len(made) == len(set(made)) == sum(map(len, passes.values()))


def test_a_long_run_keeps_few_permutations_in_memory():
    draws = sampler({"a": 1, "b": 3}, {"a": 10, "b": 10})
    for k in range(2000):
        assert draws[k].index < 10
    assert all(len(newest) <= 2 for newest in draws._permutations.values())


def test_a_pickled_sampler_is_small_and_draws_the_same():
    weights = {str(i): 1 for i in range(17)}
    draws = sampler(weights, dict.fromkeys(weights, 100_000))
    first = [draws[k] for k in range(100)]
    pickled = pickle.dumps(draws)
    assert len(pickled) < 20_000
    again = pickle.loads(pickled)
    assert [again[k] for k in range(100)] == first and [draws[k] for k in range(100)] == first
