"""Scores a model on held-out samples by its loss and by the answers that it generates."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from omni.base import checkpoint
from omni.base.console import QUIET
from omni.base.device import autocast
from omni.base.distributed import ALONE, World
from omni.base.errors import MediaError, UserError
from omni.data.collate import Collator
from omni.data.sample import Sample
from omni.eval.grading import WordErrors, correct, word_distance, word_errors
from omni.eval.scores import Counts, Media, Score, SetKey, pool, sample_counts, summarise
from omni.model.generate import generate
from omni.model.omni import OmniNetwork

SAMPLES_BEFORE_TRAINING = 64  # of each held-out set, which is enough for a comparison
CONTINUED = 48  # tokens that are generated of a text without a question, which has no end to be found
EXAMPLES = 12  # per set, for the report: this many at random, and this many of the worst answers


class Evaluator:
    """Scores a model on held-out samples. Prints nothing but a progress bar.

    With `max_new_tokens` None, answers in a set may be half as long again as its longest reference.
    """

    def __init__(self, model: OmniNetwork, collate: Collator, batch_size: int, max_new_tokens: int | None,
                 precision: str, world: World = ALONE):
        self.model, self.collate, self.precision, self.world = model, collate, precision, world
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.device = next(model.parameters()).device

    @torch.no_grad()  # under inference_mode autocast would cast each weight again at each use
    def score(self, sources: dict[str, Sequence[Sample]], swapped: bool = False,
              limit: int | None = None, answers: list[dict] | None = None) -> dict[SetKey, Score]:
        """The score of each held-out set: {(source, group, task): Score}, the same on all ranks.

        With `swapped`, only samples with media are scored, each with its own question and the media of
        another sample; those for which there are no other media are dropped. With `limit`, at most that many
        samples of a set are scored, evenly spaced. Every sample and its answer is added to `answers`, if
        given. UserError if a picture or clip can't be read any more.
        """
        sets: dict[SetKey, list[Sample]] = {}
        for source, samples in sources.items():
            for sample in samples:
                sets.setdefault((source, sample.group, sample.task), []).append(sample)
        lengths = {key: self._answer_length(samples) for key, samples in sets.items()}
        if swapped:
            with_media = {key: [*filter(media_of, samples)] for key, samples in sets.items()}
            sets = {key: swap for key, samples in with_media.items() if (swap := swap_media(samples))}
        if limit is not None:
            sets = {key: samples[::-(-len(samples) // limit)] for key, samples in sets.items()}
        sets = {key: self.world.share(samples) for key, samples in sets.items()}
        self.model.eval()
        scores = {}
        with tqdm(total=sum(map(len, sets.values())), desc="media swapped" if swapped else "held out",
                  unit="sample", mininterval=2, disable=QUIET or None, leave=False) as bar:
            for key, samples in sets.items():
                try:
                    if samples:  # a rank may have no sample of a small set
                        scores[key] = self._score_set(key, samples, lengths[key], bar, answers)
                except MediaError as err:
                    raise UserError(f"source {key[0]}: a held-out medium that was readable at the start "
                                    f"no longer is ({err}); restore it, then --resume") from None
        self.model.train()
        ranks = self.world.gather(scores)
        return {key: pool([scores[key] for scores in ranks if key in scores]) for key in sets}

    def _score_set(self, key: SetKey, samples: Sequence[Sample], length: int, bar,
                   every: list[dict] | None) -> Score:
        """Each batch holds one combination of media, because the model returns sums over a whole batch."""
        # Sorted by length: less padding, and a batch generates only as long as its longest answer.
        samples = sorted(samples, key=lambda s: (media_of(s), not _asks(s), len(s.answer)))
        drawn = set(np.random.default_rng(0).permutation(len(samples))[:EXAMPLES].tolist())
        by_media: dict[Media, Counts] = {}
        at_random, worst = [], []  # examples; `worst` holds pairs (how wrong, example)
        number = 0
        for (media, asked), alike in itertools.groupby(samples, lambda s: (media_of(s), _asks(s))):
            alike = list(alike)
            for start in range(0, len(alike), self.batch_size):
                group = alike[start:start + self.batch_size]
                counts = self._token_counts(group)
                generated = self.generate(group, length if asked else min(length, CONTINUED))
                for sample, (answer, cut) in zip(group, generated, strict=True):
                    graded = _graded(key, sample, answer)
                    counts += Counts(correct_answers=int(graded.right), word_errors=graded.errors,
                                     cut=int(cut))
                    if every is not None:
                        every.append(graded.row(cut))
                    if number in drawn:
                        at_random.append(graded.example("random"))
                    elif not graded.right:
                        worst.append((graded.wrongness, graded.example("worst")))
                        worst = sorted(worst, key=lambda pair: -pair[0])[:EXAMPLES]
                    number += 1
                by_media[media] = by_media.get(media, Counts()) + counts
                bar.update(len(group))
        return Score(key[2], by_media, (*(example for _, example in worst), *at_random))

    def _answer_length(self, samples: Sequence[Sample]) -> int:
        """The most tokens that an answer may have; `samples` are a whole set."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        encode = self.collate.tokenizer.encode
        longest = 1 + max((len(encode(s.answer)) for s in samples if _asks(s)), default=CONTINUED)
        return longest + longest // 2  # the 1 is for the token that ends it

    def _token_counts(self, samples: Sequence[Sample]) -> Counts:
        """Loss and next-token accuracy of one batch."""
        batch = self.collate(samples).to(self.device)
        with autocast(self.device, self.precision):
            loss, right = self.model(batch)
        return Counts(len(samples), float(loss), batch.answer_tokens, int(right))

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers to the samples' last question."""
        return [answer for answer, _ in self.generate(samples, self._answer_length(samples))]

    def generate(self, samples: Sequence[Sample], length: int) -> list[tuple[str, bool]]:
        """Greedy answers of at most `length` tokens, and for each whether it was cut there."""
        prompts = self.collate(samples, prompts=True).to(self.device)
        with autocast(self.device, self.precision):
            ids = generate(self.model, prompts, length)
        return [(self.model.tokenizer.decode(row), len(row) == length) for row in ids]


def media_of(sample: Sample) -> Media:
    """The kinds of media that a sample holds."""
    return ("image",) * bool(sample.images) + ("audio",) * bool(sample.audios)


def _asks(sample: Sample) -> bool:
    """Whether there is a question before the answer; a plain text has none."""
    return len(sample.turns) > 2


@dataclass(frozen=True)
class _Graded:
    """A sample of a set, the answer to it, and how right that is."""

    key: SetKey
    sample: Sample
    answer: str
    right: bool
    errors: WordErrors  # of a transcript

    @property
    def wrongness(self) -> float:
        """How wrong the answer is; the report shows the worst ones."""
        return self.errors.rate if self.key[2] == "asr" else word_distance(self.answer, self.sample.answer)

    def example(self, why: str) -> dict:
        """For the report; `why` it was chosen: "worst" or "random"."""
        *before, _ = self.sample.messages
        return {"why": why, "question": before[-1][1] if before else "", "before": before[:-1],
                "answer": self.answer, "reference": self.sample.answer, "right": self.right,
                "images": self.sample.images, "audios": self.sample.audios}

    def row(self, cut: bool) -> dict:
        """For a list of all answers; `cut` is whether this one was."""
        source, group, task = self.key
        row = {"source": source, "group": group, "task": task, **self.example(""), "cut": cut}
        del row["why"]
        return row | ({"error_rate": self.errors.rate} if task == "asr" else {})


def _graded(key: SetKey, sample: Sample, answer: str) -> _Graded:
    errors = word_errors(answer, sample.answer) if key[2] == "asr" else WordErrors()
    return _Graded(key, sample, answer, correct(answer, sample.answer), errors)


def swap_media(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample with the media of another that has as many images and as many clips, none of them its own.

    Samples for which there is no such other are dropped: their own media would say nothing.
    """
    same_counts: dict[tuple[int, int], list[int]] = {}
    for i, sample in enumerate(samples):
        same_counts.setdefault((len(sample.images), len(sample.audios)), []).append(i)
    swapped = {}
    for numbers in same_counts.values():
        # Sorted by media and shifted by the size of the largest group of equal ones, so that each medium is
        # used as often as before if none is in more than half of the samples.
        numbers = sorted(numbers, key=lambda i: samples[i].images + samples[i].audios)
        equal = Counter(samples[i].images + samples[i].audios for i in numbers)
        step = max(len(numbers) // 2, max(equal.values()))
        for place, i in enumerate(numbers):
            own = {*samples[i].images, *samples[i].audios}
            for further in range(len(numbers)):
                other = samples[numbers[(place + step + further) % len(numbers)]]
                if own.isdisjoint(other.images + other.audios):
                    swapped[i] = samples[i]._replace(images=other.images, audios=other.audios)
                    break
    return [swapped[i] for i in sorted(swapped)]


def before_training(evaluator: Evaluator, held_out: dict[str, Sequence[Sample]], folder: Path) -> float:
    """Score the system before training on a part of each held-out set; returns the seconds it took.

    The metrics are written to `before.json`, for the report.
    """
    begun = time.time()
    scores = evaluator.score(held_out, limit=SAMPLES_BEFORE_TRAINING)
    seconds = time.time() - begun
    if not QUIET:
        row = {**summarise(scores), "counts": sample_counts(scores), "seconds": seconds}
        checkpoint.save_text(folder / "before.json", json.dumps(row) + "\n")
    return seconds
