"""Held-out evaluation: which sample counts for which metric, on one rank or several, and the media swap."""

import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sft_omni
from omni.base.distributed import ALONE, World
from omni.data.sample import Sample, spread
from omni.eval.evaluate import CONTINUED, EXAMPLES, Evaluator, media_of, swap_media
from omni.eval.grading import WordErrors, correct, word_errors
from omni.eval.scores import Counts, Score, cut_counts, epoch_lines, sample_counts, summarise

IMAGE, AUDIO = ("image",), ("audio",)
SUFFIX = {"text": "acc", "qa": "qa", "asr": "wer"}

# A held-out sample of a question number, images, clips, task and group. Even numbers are answered wrongly.
held_out_sample = st.builds(
    lambda number, images, clips, task, group: Sample(
        ("user", f"question {number}", "assistant", "word " * (number % 5 + 1)),
        tuple(f"{number}.png{i}" for i in range(images)), tuple(f"{number}.wav{i}" for i in range(clips)),
        task, group),
    st.integers(0, 99), st.integers(0, 2), st.integers(0, 1), st.sampled_from(["text", "qa", "asr"]),
    st.sampled_from(["", "", "far"]))
held_out_sources = st.dictionaries(st.sampled_from(["a", "b", "c"]),
                                   st.lists(held_out_sample, min_size=1, max_size=12), min_size=1)


def number_of(sample: Sample) -> int:
    return int(sample.messages[0][1].split()[1])


class ModelFree(Evaluator):
    """An evaluator without a model: losses and answers are functions of the sample."""

    def __init__(self, world: World = ALONE, batch_size: int = 3):
        super().__init__(nn.Linear(1, 1), None, batch_size, 4, "fp32", world)

    def _token_counts(self, samples):
        assert len({media_of(s) for s in samples}) == 1, "sums over a batch can't be told apart by media"
        return sum((token_counts(s) for s in samples), Counts())

    def generate(self, samples, length):
        return [(answer_of(s), False) for s in samples]


def token_counts(sample: Sample) -> Counts:
    tokens = len(sample.answer.split())
    return Counts(1, number_of(sample) / 4, tokens, number_of(sample) % (tokens + 1))


def answer_of(sample: Sample) -> str:
    return sample.answer if number_of(sample) % 2 else "word wrong"


def expected(sources: dict[str, list[Sample]]) -> dict[str, tuple[float, int]]:
    """Name -> (metric, number of samples), computed naively from the definition of each metric."""
    everything = [(name, sample) for name, samples in sources.items() for sample in samples]
    counted = defaultdict(list)
    grouped_only = all(sample.group for _, sample in everything)
    for source, sample in everything:
        name = "/".join(filter(None, (source, sample.group, SUFFIX[sample.task])))
        counted[name, sample.task].append(sample)
        if sample.task == "text":
            counted[name.removesuffix("acc") + "exact", "qa"].append(sample)
        if not sample.group or grouped_only:
            counted["val_loss", "loss"].append(sample)
        for name, task, images, audios in (("text_acc", "text", 0, 0), ("image_qa", "qa", 1, 0),
                                           ("audio_wer", "asr", 0, 1)):
            found = (sample.task, bool(sample.images), bool(sample.audios), sample.group)
            if found == (task, images, audios, ""):
                counted[name, task].append(sample)
    return {name: (metric(kind, samples), len(samples)) for (name, kind), samples in counted.items()}


def metric(kind: str, samples: list[Sample]) -> float:
    counts = [token_counts(s) for s in samples]
    tokens = sum(c.tokens for c in counts)
    if kind in ("loss", "text"):
        return sum(c.loss if kind == "loss" else c.correct_tokens for c in counts) / tokens
    if kind == "qa":
        return sum(correct(answer_of(s), s.answer) for s in samples) / len(samples)
    return sum((word_errors(answer_of(s), s.answer) for s in samples), WordErrors()).rate


class Rank(World):
    """One of several ranks that run one after the other: `node` holds the values of all ranks to gather."""

    def gather(self, value):
        self.node[self.rank] = value
        return [self.node[rank] for rank in sorted(self.node)]


@given(held_out_sources, st.integers(1, 5), st.integers(1, 4))
def test_each_sample_counts_by_its_own_media_on_any_number_of_ranks(sources, batch_size, ranks):
    wanted, node = expected(sources), {}
    for _ in range(2):  # after the first pass each rank gathers the scores of all
        scores = [ModelFree(Rank(rank, ranks, node=node), batch_size).score(sources) for rank in range(ranks)]
    for score in scores:
        assert summarise(score) == pytest.approx({name: value for name, (value, _) in wanted.items()})
        assert sample_counts(score) == {name: samples for name, (_, samples) in wanted.items()}
        assert list(score) == list(scores[0]) and score == scores[0], "ranks disagree"


@given(held_out_sources)
def test_the_media_swap_covers_every_sample_with_media_and_no_other(sources):
    sets = defaultdict(list)
    for name, samples in sources.items():
        for sample in filter(media_of, samples):
            sets[name, sample.group, sample.task].append(sample)
    with_media = defaultdict(list)
    for (name, _, _), samples in sets.items():
        with_media[name] += swap_media(samples)
    with_media = {name: samples for name, samples in with_media.items() if samples}
    wanted = {name: samples for name, (_, samples) in expected(with_media).items()}
    found = sample_counts(ModelFree().score(sources, swapped=True))
    assert found == (wanted if any(with_media.values()) else {})


@given(held_out_sources, st.integers(1, 9))
def test_a_limit_keeps_samples_of_every_set(sources, limit):
    sets = {}
    for source, samples in sources.items():
        for s in samples:
            sets[source, s.group, s.task] = sets.get((source, s.group, s.task), 0) + 1
    scores = ModelFree().score(sources, limit=limit)
    assert scores.keys() == sets.keys()
    assert all(1 <= score.total.samples <= min(limit, sets[key]) for key, score in scores.items())


@given(st.lists(held_out_sample, min_size=1, max_size=80))
def test_a_set_has_at_most_a_dozen_random_examples_and_a_dozen_wrong_ones(samples):
    (score,) = ModelFree().score({"a": [s._replace(task="qa", group="") for s in samples]}).values()
    reasons = [example["why"] for example in score.examples]
    assert reasons.count("random") == min(EXAMPLES, len(samples)) and reasons.count("worst") <= EXAMPLES
    assert not any(example["right"] for example in score.examples if example["why"] == "worst")


def test_a_model_scores_a_mixed_set_as_it_scores_the_parts(toy):
    model = toy.model()
    evaluator = Evaluator(model, toy.collator(model), 4, 3, "fp32")
    both = [s._replace(task="qa") for s in toy.samples("image_audio_text")[:1]]
    pictures = toy.samples("image_text")[:5]
    alone = summarise(evaluator.score({"vqa": pictures}))
    for mixed in (both + pictures, pictures + both):
        scores = evaluator.score({"vqa": mixed})
        metrics, counts = summarise(scores), sample_counts(scores)
        assert metrics["image_qa"] == alone["image_qa"] and counts["image_qa"] == 5 and counts["vqa/qa"] == 6
        assert scores["vqa", "", "qa"].by_media[IMAGE].loss == pytest.approx(
            alone["val_loss"] * scores["vqa", "", "qa"].by_media[IMAGE].tokens)


def test_a_run_whose_held_out_samples_all_have_a_group_has_a_val_loss(toy, tmp_path):
    lines = (toy.root / "data" / "text_only" / "val.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"group": "far"} for line in lines]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"weight": 1, "train": str(toy.root / "data" / "text_only" / "train.jsonl"),
              "val": str(tmp_path / "val.jsonl")}
    sft_omni.main(["--config", toy.write(tmp_path, data_mix={"text": source})])
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in metrics if row["event"] == "epoch"]
    assert len(losses) == 2 and losses[1] < losses[0]
    best = sft_omni.checkpoint.load(tmp_path / "out" / "omni_best.pt", "omni", "")
    assert best["metrics"]["val_loss"] == losses[1]


def test_metrics_pool_the_sources_of_a_task_and_exclude_groups():
    metrics = summarise({
        ("t", "", "text"): Score("text", {(): Counts(2, 10.0, 4, 1)}),
        ("i", "", "qa"): Score("qa", {IMAGE: Counts(4, 6.0, 4, 4, correct_answers=1)}),
        ("j", "", "qa"): Score("qa", {IMAGE: Counts(6, correct_answers=4),
                                      IMAGE + AUDIO: Counts(2, correct_answers=2)}),
        ("a", "", "asr"): Score("asr", {AUDIO: Counts(2, word_errors=WordErrors(3, 4))}),
        ("a", "far", "asr"): Score("asr", {AUDIO: Counts(2, 1000.0, 10, word_errors=WordErrors(4, 4))})})
    assert metrics["val_loss"] == 2.0 and metrics["text_acc"] == 0.25
    assert metrics["image_qa"] == 0.5 and metrics["audio_wer"] == 0.75 and metrics["a/far/wer"] == 1.0
    assert (metrics["i/qa"], metrics["j/qa"]) == (0.25, 0.75)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=12))
def test_swapping_gives_each_sample_other_media_of_the_same_number_or_leaves_it_out(kinds):
    """The third number is that of the medium: several samples may ask about the same one."""
    samples = [Sample(("user", str(i), "assistant", "x"), tuple(f"{medium}.png{k}" for k in range(images)),
                      tuple(f"{medium}.wav{k}" for k in range(clips)))
               for i, (images, clips, medium) in enumerate(kinds)]
    swapped = {s.messages: s for s in swap_media(samples)}
    for before, kind in zip(samples, kinds, strict=True):
        others = {k for k in kinds if k[:2] == kind[:2] and k != kind}
        after = swapped.get(before.messages)
        assert (after is not None) == (bool(others) or kind[:2] == (0, 0))
        if after is not None:
            assert (len(after.images), len(after.audios)) == kind[:2]
            assert {*after.images, *after.audios}.isdisjoint(before.images + before.audios)


def test_swapping_uses_each_medium_as_often_as_before():
    samples = [Sample(("user", str(i), "assistant", "x"), (f"{i // 3}.png",)) for i in range(30)]
    for order in (samples, samples[::2] + samples[1::2]):
        assert sorted(s.images for s in swap_media(order)) == sorted(s.images for s in samples)


def test_a_set_without_other_media_has_no_swapped_figure():
    alone = [Sample(("user", f"question {i}", "assistant", "word"), ("one.png",), (), "qa") for i in range(3)]
    assert ModelFree().score({"a": alone}, swapped=True) == {}
    lines = epoch_lines(1, 1, 1.0, {"image_qa": 0.5, "a/qa": 0.5, "text_acc": 0.25}, {})
    assert lines == ["Epoch 1/1: loss=1.000, text_acc=25.0%", "  → Image QA: 50.0%  (media swapped: -)",
                     "    a/qa: 50.0%  (media swapped: -)"]


def test_a_rate_over_characters_is_called_cer():
    answers = {"zh": ("我很好", "我不好"), "en": ("so it is", "it is")}
    scores = {(name, "", "asr"): Score("asr", {AUDIO: Counts(2, word_errors=word_errors(*pair))})
              for name, pair in answers.items()}
    metrics = summarise(scores)
    assert metrics["zh/cer"] == pytest.approx(1 / 3) and metrics["en/wer"] == 0.5
    assert metrics["audio_wer"] == 0.5 and metrics["audio_cer"] == pytest.approx(1 / 3)
    assert "  → Audio CER: 33.3%  (media swapped: -)" in epoch_lines(1, 1, 1.0, metrics, {})


def test_some_samples_of_a_sorted_source_are_of_all_its_parts():
    assert spread([*range(100)], 5) == [0, 20, 40, 60, 80] and spread([*range(3)], None) == [0, 1, 2]
    assert spread([*range(7)], 4) == [0, 1, 3, 5] and spread([*range(3)], 9) == [0, 1, 2]


def test_a_set_is_answered_half_as_long_again_as_its_longest_reference(toy, model):
    evaluator = Evaluator(model, toy.collator(model), 4, None, "fp32")
    long = Sample(("user", "Say it.", "assistant", "low middle high " * 20))
    short = Sample(("user", "Say it.", "assistant", "low"), task="qa")
    tokens = len(model.tokenizer.encode(long.answer))
    assert evaluator._answer_length([long, short]) == (tokens + 1) * 3 // 2 > 60
    # This answers without an end: as many tokens as it may.
    model.thinker.logits = lambda hidden: nn.functional.one_hot(
        hidden.new_full(hidden.shape[:1], 40).long(), model.thinker.arch.vocab_size).float()
    plain = Sample(("assistant", "low middle high " * 20))
    for samples in ([long, plain, short], [short, plain, long]):
        answers: list[dict] = []
        scores = evaluator.score({"a": samples}, answers=answers)
        one = len(model.tokenizer.decode([40]))
        lengths = {row["reference"]: len(row["answer"]) // one for row in answers if row["question"]}
        assert lengths == {long.answer: (tokens + 1) * 3 // 2, "low": evaluator._answer_length([short])}
        assert [len(row["answer"]) // one for row in answers if not row["question"]] == [CONTINUED]
        assert cut_counts(scores) == {"a/exact": 2, "a/qa": 1} and all(row["cut"] for row in answers)
    lines = epoch_lines(1, 1, 1.0, summarise(scores), {}, cut_counts(scores))
    assert "    a/qa: 0.0%  (media swapped: -; 1 answers cut at max_new_tokens)" in lines
