"""Steps as CUDA graphs, on a CPU: static batches, and the bookkeeping around a "graph" that repeats the step.

On a CPU a captured step is the step itself on the graph's own batch, so all but the capture is tested here.
"""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch

import sft_omni
from omni.base.config import SFTConfig, build
from omni.base.distributed import ALONE
from omni.data.batch import IGNORE, tensors_of
from omni.data.decoding import Decoder
from omni.data.drawn import DrawnDataset
from omni.data.loader import Schedule, StepDataset
from omni.data.mixture import read_mix
from omni.data.sampler import WeightedSampler
from omni.data.static_batch import Size, StaticSizes
from omni.train import graphs, optim
from omni.train.features import FeatureStore
from omni.train.prefetch import prefetch
from omni.train.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def training(toy, capsys):
    """Makes (a run on frozen features, its function that takes a step), always the same."""
    def make(precision: str = "fp32", **changes):
        model = toy.model()
        config = build(SFTConfig, {**toy.config, "precision": precision, "batch_size": 5, **changes}, "toy")
        mix = read_mix(config)
        collate = toy.collator(model)
        features = FeatureStore(model, Decoder(collate.reader, 60.0), 1.0, precision)
        for samples in mix.train.values():
            assert features.add(samples, 1, "test") == {}
        collate.features = features
        sizes = {name: len(samples) for name, samples in mix.train.items()}
        schedule = Schedule(150, config.batch_size, 1)
        dataset = StepDataset(mix, WeightedSampler(sizes, mix.weights, 0), schedule, collate, 1,
                              config.gradient_accumulation_steps)
        optimizer = optim.adamw([(model.thinker, 3e-3), (model.audio_projector, 1e-2),
                                 (model.vision_projector, 1e-2)], 0.01, model)
        update = optim.Update(optimizer, 1.0, 3)
        capsys.readouterr()
        run = Run(config, CPU, ALONE, model.train(), model, update, dataset, None, None, None, {})
        return run, partial(sft_omni.train_step, run)
    return make


def batches_of(run, count=None):
    return [run.dataset[number].batches[0] for number in range(count or len(run.dataset))]


def taken(run, take, count: int) -> torch.Tensor:
    """The figures of `count` steps (count, 3)."""
    steps = (run.dataset[number] for number in range(count))
    return torch.stack([take(step.batches, int(step.counts[:, 1].sum()))
                        for step in prefetch(steps, CPU, take.prepare)])


def test_every_batch_fits_and_no_tensor_has_another_shape_in_the_same_size(training):
    run, _ = training()
    batches = batches_of(run)
    sizes = StaticSizes(batches)
    assert 2 <= len(sizes.sizes) <= 3
    shapes = {}
    for batch in batches:
        static = sizes.fit(batch)
        assert sizes.holds(static) and Size.of(batch) == Size.of(static)
        shapes.setdefault(len(static.ids), []).append([tuple(x.shape) for x in tensors_of(static)])
    assert len(shapes) >= 2 and all(found[0] == other for found in shapes.values() for other in found)
    few = sizes.sizes[0]
    small = [batch for batch in batches if len(sizes.fit(batch).ids) == few.tokens]
    assert len(batches) * 0.4 <= len(small) < len(batches)  # the median is in the smallest size


def with_one_answer_token(batch):
    """The batch with all labels but the first ignored."""
    first = int(batch.answers[0])
    labels = torch.full_like(batch.labels, IGNORE)
    labels[first] = batch.labels[first]
    answers = torch.full_like(batch.answers, len(batch.ids) - 1)
    answers[0] = first
    return replace(batch, labels=labels, answers=answers, answer_counts=(1, *[0] * (batch.samples - 1)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_gradients_of_a_static_batch_equal_those_of_the_plain_one(training, precision):
    run, _ = training(precision)
    batches = batches_of(run)
    text_alone = run.dataset.collate(run.dataset.mix.train["text_only"][:5])
    one_token = with_one_answer_token(batches[0])
    fullest = max(batches, key=lambda batch: Size.of(batch).tokens)
    sizes = StaticSizes(batches)
    of_each_size = {len(sizes.fit(batch).ids): batch for batch in batches}
    assert len(of_each_size) >= 2
    for batch in (text_alone, one_token, fullest, *of_each_size.values()):
        found = []
        for given in (batch, sizes.fit(batch)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss, right = run.model(given)
            run.model.zero_grad()
            loss.backward()
            found.append((loss.detach(), right, torch.cat([p.grad.flatten() for p in run.update.params])))
        (loss, right, gradient), (other_loss, other_right, other) = found
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        assert abs(float(loss - other_loss)) <= tolerance * float(loss) and int(right) == int(other_right)
        assert float((gradient - other).norm()) <= tolerance * float(gradient.norm())


def test_a_size_that_is_exactly_full_works(training):
    run, _ = training()
    batch = max(batches_of(run), key=lambda batch: Size.of(batch).tokens)
    sizes = StaticSizes([batch, batch])
    sizes.sizes = [Size.of(batch)]
    static = sizes.fit(batch)
    assert len(static.ids) == sum(batch.layout.lengths) + 1
    torch.testing.assert_close(run.model(static)[0], run.model(batch)[0])


def test_what_does_not_fit_is_left_as_it_is(training, toy):
    run, _ = training()
    batches = batches_of(run)
    sizes = StaticSizes(batches)
    largest = max(batches, key=lambda batch: Size.of(batch).tokens)
    sizes.sizes = [replace(sizes.sizes[-1], tokens=Size.of(largest).tokens - 1)]
    raw = toy.collator(run.model)(toy.samples("image_text")[:5])
    fewer = run.dataset.collate(toy.samples("text_only")[:2])
    assert [sizes.fit(batch) for batch in (largest, raw, fewer)] == [None] * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_by_graphs_train_as_plain_steps_do(training, precision):
    plain_run, plain = training(precision)
    wanted = taken(plain_run, graphs.PlainStep(plain), 20)
    run, take = training(precision)
    graphed = graphs.GraphedStep(run, take, StaticSizes(batches_of(run, 20)))
    found = taken(run, graphed, 20)
    assert graphed.works and 2 <= len(graphed.graphs) <= 3
    tolerance = {"fp32": 2e-3, "bf16": 5e-2}[precision]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert float(found[-1, 0] / found[0, 0]) < 0.7
    for (name, ours), theirs in zip(run.model.named_parameters(), plain_run.model.parameters(), strict=True):
        if ours.requires_grad:
            moved = (theirs - dict(training(precision)[0].model.named_parameters())[name]).detach().norm()
            assert float((ours - theirs).detach().norm()) <= 20 * tolerance * float(moved), name


def test_runs_by_graphs_are_equal_to_the_bit_wherever_they_begin(training):
    """As after a resume: a graph is captured at another step, and its first steps are plain ones."""
    run, take = training()
    sizes = StaticSizes(batches_of(run, 20))
    whole = graphs.GraphedStep(run, take, sizes)
    steps = [run.dataset[number] for number in range(16)]
    for step in steps[:9]:
        whole([whole.prepare(step.batches[0])], step.batches[0].answer_tokens)
    other, other_take = training()
    other.model.load_state_dict(run.model.state_dict())
    graphed = graphs.GraphedStep(other, other_take, sizes)
    optim.restore(other.update.optimizer, deepcopy(optim.content(run.update.optimizer)), "here")
    for step in steps[9:]:
        for part in (whole, graphed):
            part([part.prepare(step.batches[0])], step.batches[0].answer_tokens)
    assert all(map(torch.equal, run.model.state_dict().values(), other.model.state_dict().values()))


def test_a_graph_that_gives_another_loss_is_not_used(training, monkeypatch, capsys):
    run, take = training()
    sizes = StaticSizes(batches_of(run, 20))
    captured = graphs._captured

    def wrong(*arguments):
        graph = captured(*arguments)
        replay = graph.replay
        graph.replay = lambda batch: replay(batch) * torch.tensor([1.1, 1.0, 1.0])
        return graph
    monkeypatch.setattr(graphs, "_captured", wrong)
    found = taken(run, graphs.GraphedStep(run, take, sizes), 8)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "CUDA graphs are not used: their loss is" in lines[0]
    monkeypatch.undo()
    plain_run, plain = training()
    wanted = [plain([sizes.fit(batch)], torch.tensor(float(batch.answer_tokens)))
              for batch in batches_of(plain_run, 8)]
    torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("can't be captured\nmore")])
def test_a_capture_that_fails_is_one_line_and_the_step_is_taken(training, monkeypatch, capsys, error):
    run, take = training()

    def fails(*_):
        raise error
    monkeypatch.setattr(graphs, "_captured", fails)
    graphed = graphs.GraphedStep(run, take, StaticSizes(batches_of(run, 20)))
    figures = taken(run, graphed, 8)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and str(error).splitlines()[0] in lines[0] and not graphed.works
    assert figures[:, 2].all() and float(figures[-1, 0]) < float(figures[0, 0])


def test_a_graph_that_trains_nothing_is_not_used(training, monkeypatch, capsys):
    run, take = training()
    captured, wanted = graphs._captured, []

    def idle(*arguments):
        graph = captured(*arguments)
        graph.replay = lambda _: wanted[-1]
        return graph

    def noted(*arguments):
        wanted.append(take(*arguments))
        return wanted[-1]
    monkeypatch.setattr(graphs, "_captured", idle)
    taken(run, graphs.GraphedStep(run, noted, StaticSizes(batches_of(run, 20))), 6)
    assert "it changes no weight" in capsys.readouterr().out


def test_a_step_that_is_not_finite_is_found_in_a_graph_too(training):
    run, take = training()
    run.update.waits = False
    graphed = graphs.GraphedStep(run, take, StaticSizes(batches_of(run, 20)))
    taken(run, graphed, 8)
    run.model.thinker.norm.weight.data[0] = float("inf")
    before = run.model.thinker.layers[0].mlp.up_proj.weight.clone()
    figures = taken(run, graphed, 3)
    assert not figures[:, 2].any() and torch.equal(before, run.model.thinker.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("changes, reason", [
    ({"cuda_graphs": False}, "is false"), ({"gradient_accumulation_steps": 2}, "accumulated"),
    ({"freeze_encoders": False}, "encoders are trained"), ({"activation_checkpointing": True}, "recomputed")])
def test_a_run_that_cannot_use_graphs_says_why(training, capsys, changes, reason):
    run, take = training()
    config = build(SFTConfig, {**vars(run.config), **changes}, "toy")
    object.__setattr__(run, "config", config)
    object.__setattr__(run, "device", torch.device("cuda"))
    assert isinstance(graphs.choose(run, take), graphs.PlainStep)
    assert reason in capsys.readouterr().out


def test_raw_media_and_media_that_are_checked_as_drawn_need_plain_steps(training, toy):
    run, _ = training()
    assert len(graphs._first_batches(run.dataset)) == 30
    drawn = DrawnDataset(run.dataset, Decoder(run.dataset.collate.reader, 60.0), 0.5)
    assert graphs._first_batches(drawn) is None
    run.dataset.collate.features = None
    assert graphs._first_batches(run.dataset) is None


def test_on_a_cpu_steps_are_taken_as_they_are_written(training, capsys):
    run, take = training()
    assert isinstance(graphs.choose(run, take), graphs.PlainStep) and capsys.readouterr().out == ""


@pytest.mark.gpu
def test_a_run_by_graphs_ends_near_a_run_without(toy, tmp_path, capsys):
    losses = []
    for graphs_on in (True, False):
        sets = {"device": "cuda", "precision": "bf16", "cuda_graphs": graphs_on, "batch_size": 5,
                "samples_per_epoch": 100}
        sft_omni.main(["--config", toy.write(tmp_path / str(graphs_on), **sets)])
        rows = (tmp_path / str(graphs_on) / "out" / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, rows) if row["event"] == "epoch"])
        said = capsys.readouterr().out
        assert ("steps: CUDA graphs" in said) == graphs_on and "not used" not in said
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
