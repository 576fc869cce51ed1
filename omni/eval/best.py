"""The best epoch so far by a named figure, and when a run stops because none is better."""

import math
from collections.abc import Mapping, Sequence

from omni.base.config import SFTConfig
from omni.base.errors import UserError
from omni.data.sample import Sample
from omni.eval.evaluate import media_of
from omni.eval.grading import WordErrors, word_errors
from omni.eval.scores import Counts, Score, lower_is_better, summarise


class Best:
    """Tracks the figure `best_by` from epoch to epoch; `add` gets the figures of each.

    UserError if the samples that are `held_out` have no such figure.
    """

    def __init__(self, config: SFTConfig, held_out: Mapping[str, Sequence[Sample]]):
        self.name, self.patience = config.best_by, config.stop_after
        self.value: float | None = None  # of the best epoch
        self.epoch = self.latest = 0
        names = metric_names(held_out)
        if not names and (self.patience is not None or self.name != SFTConfig().best_by):
            key = "stop_after" if self.patience is not None else "best_by"
            raise UserError(f'"{key}" needs held-out samples, and no source has any; give one a "val", or '
                            "remove the key")
        if names and self.name not in names:
            raise UserError(f'"best_by": these held-out samples have no figure "{self.name}"; they have '
                            f'{", ".join(names)}')

    def add(self, epoch: int, figures: Mapping[str, float]) -> bool:
        """Whether `epoch` (counted from 1) is the best so far."""
        self.latest, value = epoch, figures.get(self.name)
        if value is None or math.isnan(value) or self.value is not None and not self._better(value):
            return False
        self.value, self.epoch = value, epoch
        return True

    def _better(self, value: float) -> bool:
        return value < self.value if lower_is_better(self.name) else value > self.value

    @property
    def verdict(self) -> str | None:
        """Why the run stops now; None if it goes on."""
        waited = self.latest - self.epoch
        if self.patience is None or self.value is None or waited < self.patience:
            return None
        value = f"{self.value:.3f}" if self.name.endswith("loss") else f"{self.value:.1%}"
        return (f'stopped after epoch {self.latest}: {waited} without a better {self.name} ("stop_after"); '
                f"the best is {value} of epoch {self.epoch}, in omni_best.pt")


def metric_names(held_out: Mapping[str, Sequence[Sample]]) -> list[str]:
    """The names of the figures that these held-out samples will have."""
    scores: dict[tuple[str, str, str], Score] = {}
    for source, samples in held_out.items():
        for sample in samples:
            score = scores.setdefault((source, sample.group, sample.task), Score(sample.task))
            errors = word_errors(sample.answer, sample.answer) if sample.task == "asr" else WordErrors()
            media = media_of(sample)
            score.by_media[media] = score.by_media.get(media, Counts()) + Counts(1, word_errors=errors)
    return list(summarise(scores))
