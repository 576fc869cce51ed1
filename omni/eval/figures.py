"""Held-out figures: what a set of samples came to, and what of it is printed and kept."""

from dataclasses import dataclass

from omni.eval.grading import WordErrors


@dataclass(frozen=True)
class Score:
    """What a set of held-out samples of one task came to."""

    task: str
    media: tuple[str, ...] = ()  # "image", "audio": what the samples hold
    samples: int = 0
    loss: float = 0.0  # sum over answer tokens
    tokens: int = 0  # answer tokens
    hits: int = 0  # of them predicted exactly, given those before
    right: int = 0  # generated answers that equal the reference
    errors: WordErrors = WordErrors()  # of generated transcripts
    shown: tuple[dict, ...] = ()  # some of the samples with their answers, to look at

    @property
    def figure(self) -> float:
        """text: next-token accuracy; qa: share of answers that are right; asr: word error rate. 0 to 1."""
        if self.task == "asr":
            return self.errors.rate
        return self.right / max(self.samples, 1) if self.task == "qa" else self.hits / max(self.tokens, 1)


def summarise(scores: dict[tuple[str, str, str], Score]) -> dict[str, float]:
    """The epoch's figures: val_loss over all ungrouped samples, one a task, and each set by its own name."""
    return {name: value for name, (value, _) in _named(scores).items()}


def counted(scores: dict[tuple[str, str, str], Score]) -> dict[str, int]:
    """The number of samples behind each figure."""
    return {name: samples for name, (_, samples) in _named(scores).items()}


def _named(scores: dict[tuple[str, str, str], Score]) -> dict[str, tuple[float, int]]:
    """Name -> (figure, samples)."""
    main = {key: score for key, score in scores.items() if not key[1]}
    named = {}
    if main:
        tokens, samples = (sum(getattr(s, key) for s in main.values()) for key in ("tokens", "samples"))
        named["val_loss"] = sum(s.loss for s in main.values()) / max(1, tokens), samples
    for name, task, media in (("text_acc", "text", ()), ("image_qa", "qa", ("image",)),
                              ("audio_wer", "asr", ("audio",))):
        scored = [s for s in main.values() if (s.task, s.media) == (task, media)]
        if scored:
            pooled = pool(scored)
            named[name] = pooled.figure, pooled.samples
    for (source, group, task), score in scores.items():
        suffix = {"text": "acc", "qa": "qa", "asr": "wer"}[task]
        named["/".join(filter(None, (source, group, suffix)))] = score.figure, score.samples
        if task == "text":
            named["/".join(filter(None, (source, group, "exact")))] = \
                score.right / max(score.samples, 1), score.samples
    return named


def pool(scores: list[Score]) -> Score:
    """Several scores as one; of the samples to look at, those of the first."""
    return Score(scores[0].task, scores[0].media, sum(s.samples for s in scores), sum(s.loss for s in scores),
                 sum(s.tokens for s in scores), sum(s.hits for s in scores), sum(s.right for s in scores),
                 sum((s.errors for s in scores), WordErrors()), scores[0].shown)


def epoch_lines(epoch: int, epochs: int, loss: float, figures: dict[str, float],
                swapped: dict[str, float]) -> list[str]:
    """The held-out figures of an epoch as a person reads them; beside each, the same with media swapped."""
    def share(name):
        if name not in figures:
            return "-"
        beside = f"  (media swapped: {swapped[name]:.1%})" if name in swapped else ""
        return f"{figures[name]:.1%}{beside}"

    lines = [f"Epoch {epoch}/{epochs}: loss={loss:.3f}, text_acc={share('text_acc')}"]
    for name, label in (("image_qa", "Image QA"), ("audio_wer", "Audio WER")):
        if name in figures:
            lines.append(f"  → {label}: {share(name)}")
    for name in sorted(figures):
        if "/" in name:
            lines.append(f"    {name}: {share(name)}")
    return lines
