"""Held-out figures, by real generation where an answer is asked for. All is returned, nothing printed."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from omni import checkpoint
from omni.console import QUIET
from omni.data.collate import Collator
from omni.data.sample import Sample
from omni.device import autocast
from omni.distributed import ALONE, World
from omni.errors import MediaError, UserError
from omni.eval.figures import Score, counted, pool, summarise
from omni.eval.grading import WordErrors, correct, unlike, word_errors
from omni.model.generate import generate
from omni.model.omni import OmniNetwork

BEFORE = 64  # held-out samples a set, scored before training
SHOWN = 12  # samples of a held-out set drawn for the report, and as many of the worst


class Evaluator:
    """Scores a model on held-out samples: {(source, group, task): Score}."""

    def __init__(self, model: OmniNetwork, collate: Collator, batch_size: int, max_new_tokens: int,
                 precision: str, world: World = ALONE):
        self.model, self.collate, self.precision, self.world = model, collate, precision, world
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.device = next(model.parameters()).device

    @torch.no_grad()  # under inference_mode autocast would cast each weight again at each use
    def score(self, sources: dict[str, Sequence[Sample]], swapped: bool = False,
              limit: int | None = None) -> dict[tuple[str, str, str], Score]:
        """With `swapped`, each sample keeps its question and gets the media of another sample of its set.

        With `limit`, no more than so many samples of a set are scored, taken evenly from all of it.
        """
        sets: dict[tuple[str, str, str], list[Sample]] = {}
        for source, samples in sources.items():
            for sample in samples:
                sets.setdefault((source, sample.group, sample.task), []).append(sample)
        if swapped:
            sets = {key: swap_media(samples) for key, samples in sets.items()
                    if samples[0].images or samples[0].audios}
        if limit is not None:
            sets = {key: samples[::-(-len(samples) // limit)] for key, samples in sets.items()}
        sets = {key: self.world.share(samples) for key, samples in sets.items() if len(samples)}
        self.model.eval()
        scores = {}
        with tqdm(total=sum(map(len, sets.values())), desc="media swapped" if swapped else "held out",
                  unit="sample", mininterval=2, disable=QUIET or None, leave=False) as bar:
            for key, samples in sets.items():
                try:
                    if samples:  # a rank may have none of a small set
                        scores[key] = self._score_set(key[2], samples, bar)
                except MediaError as err:
                    raise UserError(f"source {key[0]}: a held-out medium that was readable at the start is "
                                    f"so no more ({err}); mend it, then go on with --resume") from None
        self.model.train()
        ranks = self.world.gather(scores)
        return {key: pool([scores[key] for scores in ranks if key in scores]) for key in sets}

    def _score_set(self, task: str, samples: Sequence[Sample], bar) -> Score:
        loss = tokens = hits = right = 0
        errors = WordErrors()
        wrong, drawn = [], []  # to look at; of the wrong ones (how wrong, sample), the worst SHOWN
        chosen = set(np.random.default_rng(0).permutation(len(samples))[:SHOWN].tolist())
        # Like lengths together: less padding, and a batch's generation ends with its longest answer.
        samples = sorted(samples, key=lambda s: len(s.answer))
        for start in range(0, len(samples), self.batch_size):
            group = samples[start:start + self.batch_size]
            batch = self.collate(group).to(self.device)
            with autocast(self.device, self.precision):
                batch_loss, batch_hits = self.model(batch)
            loss, hits = loss + float(batch_loss), hits + int(batch_hits)
            tokens += batch.answer_tokens
            for number, (sample, answer) in enumerate(zip(group, self.answers(group), strict=True), start):
                good = correct(answer, sample.answer)
                right += good
                missed = word_errors(answer, sample.answer) if task == "asr" else WordErrors()
                errors += missed
                if number in chosen:
                    drawn.append(_show(sample, answer, good, "random"))
                elif not good:
                    badness = missed.rate if task == "asr" else unlike(answer, sample.answer)
                    wrong.append((badness, _show(sample, answer, good, "worst")))
                    wrong = sorted(wrong, key=lambda pair: -pair[0])[:SHOWN]
            bar.update(len(group))
        held = (("image", samples[0].images), ("audio", samples[0].audios))
        media = tuple(name for name, paths in held if paths)
        return Score(task, media, len(samples), loss, int(tokens), int(hits), right, errors,
                     (*(shown for _, shown in wrong), *drawn))

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers to the samples' last question."""
        prompts = self.collate(samples, prompts=True).to(self.device)
        with autocast(self.device, self.precision):
            ids = generate(self.model, prompts, self.max_new_tokens)
        return [self.model.tokenizer.decode(row) for row in ids]


def _show(sample: Sample, answer: str, right: bool, why: str) -> dict:
    """A sample and its answer for the report; `why` it is shown: "worst" or "random"."""
    *before, _ = sample.messages
    return {"why": why, "question": before[-1][1] if before else "", "before": before[:-1], "answer": answer,
            "reference": sample.answer, "right": right, "images": sample.images, "audios": sample.audios}


def swap_media(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample with the media of the one half the set further on among those with as many of each kind."""
    alike: dict[tuple[int, int], list[int]] = {}
    for i, sample in enumerate(samples):
        alike.setdefault((len(sample.images), len(sample.audios)), []).append(i)
    swapped = list(samples)
    for numbers in alike.values():
        for place, i in enumerate(numbers):
            other = samples[numbers[(place + len(numbers) // 2) % len(numbers)]]
            swapped[i] = samples[i]._replace(images=other.images, audios=other.audios)
    return swapped


def before_training(evaluator: Evaluator, held_out: dict[str, Sequence[Sample]], folder: Path) -> float:
    """Score what the untrained system answers, for the report: `before.json`; returns the seconds it took.

    BEFORE samples of a set are enough to see what is gained and what is forgotten, and cost little.
    """
    begun = time.time()
    scores = evaluator.score(held_out, limit=BEFORE)
    seconds = time.time() - begun
    if not QUIET:
        row = {**summarise(scores), "counts": counted(scores), "seconds": seconds}
        checkpoint.save_text(folder / "before.json", json.dumps(row) + "\n")
    return seconds
