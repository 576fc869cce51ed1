"""Skipped samples: which are dropped (unreadable media, too long) and why, and when they are too many."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from omni.data.collate import Collator
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.errors import UserError


def _drop(mix: Mix, why: Callable[[str, Sample], str | None]) -> None:
    """Drop the samples for which `why(source, sample)` returns a reason, and add them to `mix.skipped`."""
    for split, sources in (("train", mix.train), ("val", mix.val)):
        for name, samples in sources.items():
            reasons = [why(name, sample) for sample in samples]
            mix.skipped += [
                {"source": name, "split": split, "media": [*sample.images, *sample.audios],
                 "question": sample.messages[0][1][:80], "reason": reason}
                for sample, reason in zip(samples, reasons, strict=True) if reason is not None]
            sources[name] = [s for s, reason in zip(samples, reasons, strict=True) if reason is None]


def drop_unreadable(mix: Mix, bad: dict[str, str]) -> None:
    """Drop the samples with a medium in `bad`, which is {path: reason}."""
    if bad:
        _drop(mix, lambda _, s: next((bad[path] for path in s.images + s.audios if path in bad), None))


def drop_overlong(mix: Mix, collate: Collator, frames: dict[str, int]) -> None:
    """Drop the samples that can't be cut to max_length; count those that are cut.

    `frames` is {path: mel frames of its longest take} of all clips.
    """
    def why(name: str, sample: Sample) -> str | None:
        longer, reason = collate.overlong(sample, frames)
        if longer and reason is None:
            mix.cut[name] = mix.cut.get(name, 0) + 1
        return reason
    _drop(mix, why)


def reason_counts(mix: Mix) -> dict[str, dict[str, int]]:
    """{source: {reason: number of skipped samples}}."""
    return {name: dict(Counter(row["reason"] for row in mix.skipped if row["source"] == name))
            for name in mix.train}


def check(mix: Mix, max_skipped: float, listed: Path | None) -> None:
    """A UserError if a source lost more than `max_skipped` of its samples, or all of a split.

    `listed` is the file that lists the skipped samples, for the message; None if there is no such file.
    """
    for name, reasons in reason_counts(mix).items():
        kept, lost = len(mix.train[name]) + len(mix.val[name]), sum(reasons.values())
        empty = not mix.train[name] or not mix.val[name] and name not in mix.without_val
        if empty or lost > max_skipped * (kept + lost):
            what = "; ".join(f"{count}x {reason}" for reason, count in reasons.items())
            what = what or "one of them is empty"
            first = next((f", the first on line {row['line']} of its {row['split']} manifest"
                          for row in mix.skipped if row["source"] == name and "line" in row), "")
            where = f" ({listed} lists them)" if listed is not None and lost else ""
            paths = " and ".join(mix.files[key] for key in mix.files if key.startswith(f"{name}."))
            raise UserError(f"source {name}, {paths}: {lost} of {kept + lost} samples can't be used: "
                            f"{what}{first}{where}. Fix them or raise max_skipped (now {max_skipped:g})")


def lines(mix: Mix) -> list[str]:
    """Per source, a line with the skipped samples by reason, and one with the number of cut samples."""
    found = [f"source {name}: {sum(reasons.values())} samples skipped"
             + "".join(f"; {count}x {reason}" for reason, count in reasons.items())
             for name, reasons in reason_counts(mix).items()]
    return found + [f"source {name}: {count} samples are longer than max_length: the start of their prompt "
                    "is cut" for name, count in mix.cut.items()]
