"""Scores of held-out samples, and the metrics that a run prints and records."""

from dataclasses import dataclass, field

from omni.eval.grading import WordErrors

SetKey = tuple[str, str, str]  # a held-out set: source, group ("" for none), task
Media = tuple[str, ...]  # which kinds of media a sample holds: (), ("image",), ("audio",) or both
# The metrics over all sources: name -> task of the samples, and the media that they hold.
POOLED_METRICS: dict[str, tuple[str, Media]] = {
    "text_acc": ("text", ()), "image_qa": ("qa", ("image",)), "audio_wer": ("asr", ("audio",)),
    "audio_cer": ("asr", ("audio",))}  # of sets in scripts without spaces, where characters are counted
WITH_MEDIA = ("qa", "wer", "cer")  # ends of the names of metrics about media


@dataclass(frozen=True)
class Counts:
    """Sums over samples, from which every metric is computed."""

    samples: int = 0
    loss: float = 0.0  # sum over answer tokens, in nats
    tokens: int = 0  # answer tokens
    correct_tokens: int = 0  # right argmax predictions, given the reference tokens before them
    correct_answers: int = 0  # generated answers that equal the reference
    word_errors: WordErrors = WordErrors()  # of generated transcripts
    cut: int = 0  # generated answers that reached the limit of their length

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def metric(self, task: str) -> float:
        """text: next-token accuracy; qa: share of correct answers; asr: word error rate (can exceed 1)."""
        if task == "asr":
            return self.word_errors.rate
        return self.exact if task == "qa" else self.correct_tokens / max(self.tokens, 1)

    @property
    def exact(self) -> float:
        """Share of samples whose generated answer equals the reference."""
        return self.correct_answers / max(self.samples, 1)


@dataclass(frozen=True)
class Score:
    """The result of one held-out set, counted separately for each combination of media in its samples."""

    task: str
    by_media: dict[Media, Counts] = field(default_factory=dict)
    examples: tuple[dict, ...] = ()  # samples with their answers, for the report

    @property
    def total(self) -> Counts:
        return sum(self.by_media.values(), Counts())

    @property
    def suffix(self) -> str:
        """The ending of its metric's name; cer, not wer, if the references are in a script without spaces."""
        by_character = self.task == "asr" and self.total.word_errors.by_character
        return "cer" if by_character else {"text": "acc", "qa": "qa", "asr": "wer"}[self.task]


def lower_is_better(name: str) -> bool:
    """Whether the metric `name` is better if it is lower."""
    return name.endswith(("loss", "wer", "cer"))


def pool(scores: list[Score]) -> Score:
    """Merge the scores of several ranks for one set; the examples are those of the first."""
    by_media: dict[Media, Counts] = {}
    for score in scores:
        for media, counts in score.by_media.items():
            by_media[media] = by_media.get(media, Counts()) + counts
    return Score(scores[0].task, by_media, scores[0].examples)


def summarise(scores: dict[SetKey, Score]) -> dict[str, float]:
    """The metrics of an evaluation by name: val_loss, those pooled over sources, and those of each set.

    val_loss and the pooled metrics exclude samples with a group. If every sample has one, val_loss includes
    all of them.
    """
    return {name: value for name, (value, _) in _metrics(scores).items()}


def sample_counts(scores: dict[SetKey, Score]) -> dict[str, int]:
    """The number of samples behind each metric."""
    return {name: counts.samples for name, (_, counts) in _metrics(scores).items()}


def cut_counts(scores: dict[SetKey, Score]) -> dict[str, int]:
    """How many answers behind each metric were cut, if any were. Such answers may have been right."""
    return {name: counts.cut for name, (_, counts) in _metrics(scores).items()
            if counts.cut and not name.endswith(("loss", "acc"))}  # these need no generated answers


def _metrics(scores: dict[SetKey, Score]) -> dict[str, tuple[float, Counts]]:
    """Name -> (value, the sums it is computed from)."""
    ungrouped = {key: score for key, score in scores.items() if not key[1]}
    metrics = {}
    if scores:
        total = sum((score.total for score in (ungrouped or scores).values()), Counts())
        metrics["val_loss"] = total.loss / max(1, total.tokens), total
    for name, (task, media) in POOLED_METRICS.items():
        parts = [s.by_media[media] for s in ungrouped.values() if s.task == task and media in s.by_media
                 and (task != "asr" or s.suffix == name[-3:])]
        if parts:
            total = sum(parts, Counts())
            metrics[name] = total.metric(task), total
    for (source, group, task), score in scores.items():
        total = score.total
        metrics["/".join(filter(None, (source, group, score.suffix)))] = total.metric(task), total
        if task == "text":
            metrics["/".join(filter(None, (source, group, "exact")))] = total.exact, total
    return metrics


def epoch_lines(epoch: int, epochs: int, loss: float, metrics: dict[str, float], swapped: dict[str, float],
                cut: dict[str, int] | None = None) -> list[str]:
    """What is printed after an epoch: its loss and its metrics."""
    first, *others = metric_lines(metrics, swapped, cut or {})
    return [f"Epoch {epoch}/{epochs}: loss={loss:.3f}, {first}", *others]


def metric_lines(metrics: dict[str, float], swapped: dict[str, float] | None,
                 cut: dict[str, int]) -> list[str]:
    """The metrics, each with its value when the media are swapped, and how many of its answers were cut.

    That value is "-" if no sample could get other media. `swapped` is None if they were not swapped.
    """
    def percent(name):
        if name not in metrics:
            return "-"
        notes = []
        if swapped is not None and (name in swapped or name.endswith(WITH_MEDIA)):
            notes.append(f"media swapped: {swapped[name]:.1%}" if name in swapped else "media swapped: -")
        if name in cut:
            notes.append(f"{cut[name]:,} answers cut at max_new_tokens")
        return f"{metrics[name]:.1%}" + (f"  ({'; '.join(notes)})" if notes else "")

    lines = [f"text_acc={percent('text_acc')}" if metrics else "nothing is held out"]
    for name, label in (("image_qa", "Image QA"), ("audio_wer", "Audio WER"), ("audio_cer", "Audio CER")):
        if name in metrics:
            lines.append(f"  → {label}: {percent(name)}")
    for name in sorted(metrics):
        if "/" in name:
            lines.append(f"    {name}: {percent(name)}")
    return lines
