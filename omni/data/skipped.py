"""Skipped samples: which are dropped (unreadable media, too long) and why, and when they are too many."""

from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path

from omni.base.errors import UserError
from omni.base.paths import shown
from omni.data.collate import Collator
from omni.data.mixture import Mix
from omni.data.paths import counted
from omni.data.sample import Sample


def row(source: str, split: str, sample: Sample, reason: str) -> dict:
    """A skipped sample as skipped.jsonl lists it."""
    return {"source": source, "split": split, "media": [*sample.images, *sample.audios],
            "question": sample.messages[0][1][:80], "reason": reason}


def _drop(mix: Mix, why: Callable[[str, Sample], str | None],
          splits: Collection[str] = ("train", "val")) -> None:
    """Drop the samples for which `why(source, sample)` returns a reason, and add them to `mix.skipped`."""
    for split, sources in (("train", mix.train), ("val", mix.val)):
        if split not in splits:
            continue
        for name, samples in sources.items():
            reasons = [why(name, sample) for sample in samples]
            mix.skipped += [row(name, split, sample, reason)
                            for sample, reason in zip(samples, reasons, strict=True) if reason is not None]
            sources[name] = [s for s, reason in zip(samples, reasons, strict=True) if reason is None]


def drop_unreadable(mix: Mix, bad: dict[str, str]) -> None:
    """Drop the samples with a medium in `bad`, which is {path: reason}."""
    if bad:
        _drop(mix, lambda _, s: next((bad[path] for path in s.images + s.audios if path in bad), None))


def drop_overlong(mix: Mix, collate: Collator, frames: dict[str, int],
                  splits: Collection[str] = ("train", "val")) -> None:
    """Cut long plain texts of `splits` into pieces; of other long samples, drop those that can't be cut to
    max_length and count the rest.

    `frames` is {path: mel frames of its longest take} of all clips.
    """
    _cut_texts(mix, collate, splits)

    def why(name: str, sample: Sample) -> str | None:
        tokens, reason = collate.overlong(sample, frames)
        if tokens:
            mix.overlong.setdefault(name, []).append(tokens)
            if reason is None:
                mix.cut[name] = mix.cut.get(name, 0) + 1
        return reason
    _drop(mix, why, splits)


def _cut_texts(mix: Mix, collate: Collator, splits: Collection[str]) -> None:
    for sources in (getattr(mix, split) for split in splits):
        for name, samples in sources.items():
            parts = [collate.pieces(sample) for sample in samples]
            long = [len(pieces) for pieces in parts if len(pieces) > 1]
            if long:
                texts, pieces = mix.pieces.get(name, (0, 0))
                mix.pieces[name] = texts + len(long), pieces + sum(long)
                sources[name] = [*chain(*parts)]


def longer_remedy(mix: Mix, name: str) -> str:
    """The max_length that holds 99 % of a source's samples whole, as advice; "" if they are whole now."""
    lengths = sorted(mix.overlong.get(name, ()), reverse=True)
    lost = sum(reason_counts(mix)[name].values())
    spared = (len(mix.train[name]) + len(mix.val[name]) + lost) // 100
    if len(lengths) <= spared:
        return ""
    return f'"max_length": {-(-lengths[spared] // 32) * 32} holds 99 % of its samples whole'


def reason_counts(mix: Mix) -> dict[str, dict[str, int]]:
    """{source: {reason: number of skipped samples}}."""
    return {name: dict(counted(row["reason"] for row in mix.skipped if row["source"] == name))
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
            paths = " and ".join(shown(files) for key, files in mix.files.items()
                                 if key.startswith(f"{name}."))
            longer = longer_remedy(mix, name)
            raise UserError(f"source {name}, {paths}: {lost} of {kept + lost} samples can't be used: "
                            f"{what}{first}{where}. {f'{longer}; fix' if longer else 'Fix'} them or raise "
                            f"max_skipped (now {max_skipped:g})")


def lines(mix: Mix) -> list[str]:
    """What is said of a mix before and after training: `problem_lines` and `piece_lines`."""
    return problem_lines(mix) + piece_lines(mix)


def problem_lines(mix: Mix) -> list[str]:
    """Per source: the skipped samples by reason, the cut prompts, and how they would be whole."""
    found = [f"source {name}: {sum(reasons.values())} samples skipped"
             + "".join(f"; {count}x {reason}" for reason, count in reasons.items())
             for name, reasons in reason_counts(mix).items() if reasons]
    found += [f"source {name}: {count} samples are longer than max_length: the start of their prompt is cut"
              for name, count in mix.cut.items()]
    return found + [f"source {name}: {remedy}" for name in mix.overlong
                    if (remedy := longer_remedy(mix, name))]


def piece_lines(mix: Mix) -> list[str]:
    """Per source: the long plain texts, of which nothing is lost."""
    return [f"source {name}: {texts} plain texts are longer than max_length: they are cut into {pieces} "
            "pieces, which are all used" for name, (texts, pieces) in mix.pieces.items()]
