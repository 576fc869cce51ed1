"""Reads a source of any format into checked `Sample`s; entries that can't be used are skipped with a reason.

`python -m omni.inspect PATH` shows how a source is read.
"""

import gc
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omni.base.errors import UserError
from omni.base.paths import named, shown
from omni.data import folders, formats
from omni.data.checks import Checker
from omni.data.conversations import Converter
from omni.data.media import Piece
from omni.data.paths import counted
from omni.data.sample import Sample
from omni.data.tasks import guess_tasks

SMALL = 200  # different samples: in a source with fewer, exactly the wanted share is held out


@dataclass
class Source:
    """The samples of one source, and the entries that were skipped."""

    name: str
    files: list[str]
    samples: list[Sample]
    # (number of the entry, or FILE:NUMBER where there are several files; reason)
    skipped: list[tuple[int | str, str]] = field(default_factory=list)
    unit: str = "line"  # what the numbers count
    kind: str = ""  # the format and the most common shapes of its entries
    folder: Path = Path()  # media paths in the source are relative to it
    unread: Counter = field(default_factory=Counter)  # key -> entries in which its value was not read
    notes: Counter = field(default_factory=Counter)  # what was dropped from samples -> how often

    @property
    def path(self) -> str:
        """The file or folder, for messages; of several the first, and how many there are."""
        return shown(self.files)

    def split(self, share: float) -> tuple[list[Sample], list[Sample]]:
        """(training, held-out) samples. About `share` is held out, and at least one sample.

        The split of a sample depends only on its own content. So it stays the same when the source grows, is
        shuffled or is moved, and equal samples are in the same split. Where there are few samples their
        hashes aren't spread evenly, so those with the lowest hashes are held out; there the split may change
        when the source grows.
        """
        hashes = [self._hash_of(sample) for sample in self.samples]
        different = sorted({*hashes})
        limit = max(share, min(hashes, default=0.0))
        if 1 <= len(different) <= SMALL:
            limit = different[max(1, min(round(share * len(different)), len(different) - 1)) - 1]
        splits = [], []
        for sample, value in zip(self.samples, hashes, strict=True):
            splits[value <= limit].append(sample)
        return splits

    def _hash_of(self, sample: Sample) -> float:
        """A hash of the texts and the names of the media, spread evenly over 0 to 1."""
        names = [path.rsplit("/", 1)[-1] if isinstance(path, Piece) else _relative(path, self.folder)
                 for path in sample.images + sample.audios]
        content = json.dumps([sample.messages, names]).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2 ** 64

    def reasons(self) -> Counter:
        """{reason: entries skipped for it}."""
        return counted(reason for _, reason in self.skipped)

    def lines(self) -> Iterator[str]:
        """What is not trained on in entries that are used: keys that aren't read, dropped turns."""
        if self.unread:
            keys = ", ".join(f'"{key}" ({count:,})' for key, count in self.unread.most_common(12))
            more = f" and {len(self.unread) - 12:,} more" if len(self.unread) > 12 else ""
            yield (f'not read: {keys}{more}; "columns" of the source can say what a key is, or '
                   '{"ignore": KEY}')
        for note, count in self.notes.most_common():
            yield f"{note} ({count:,}x)"

    def check(self, max_skipped: float) -> "Source":
        """The source itself. UserError if it's empty or a larger share than `max_skipped` was skipped."""
        total = len(self.samples) + len(self.skipped)
        if not self.samples or len(self.skipped) > max_skipped * total:
            common = self.reasons().most_common(3)
            reasons = "; ".join(f"{n}x {reason}" for reason, n in common) or "it is empty"
            line = f" (first: {self.unit} {self.skipped[0][0]})" if self.skipped else ""
            raise UserError(f"{self.path} ({self.kind}): {len(self.skipped)} of {total} samples can't be used"
                            f": {reasons}{line}. Repair them or raise max_skipped (now {max_skipped:g})")
        return self


def _relative(path: str, folder: Path) -> str:
    """`path` as seen from `folder`, with "/" on any system; `path` itself on another drive of Windows."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:
        return path


def summary_line(sources: list[Source]) -> str:
    """The formats of these files, and how many samples, media and skipped entries they have in total."""
    kinds = " and ".join(dict.fromkeys(source.kind for source in sources))
    samples = [sample for source in sources for sample in source.samples]
    media = {path for sample in samples for path in sample.images + sample.audios}
    skipped = sum(len(source.skipped) for source in sources)
    return f"{kinds}; {len(samples):,} samples, {len(media):,} media, {skipped:,} skipped"


def read(path: str | list[str], name: str = "", allow_outside_paths: bool = False, question: str = "",
         columns: dict | None = None, task: str = "", media_dir: str = "") -> Source:
    """Read the source at `path`: a file, a folder, a pattern, or a list of these.

    UserError if it can't be read or its format is unknown. Media paths become absolute. Media must exist, but
    are not opened yet. `question` and `task` are used by samples that have none. `columns` say what keys are:
    {"audio": KEY, "answer": KEY, ...}. A UserError too if a key that isn't read holds media. Relative paths
    of media are looked for in `media_dir`, or else beside the file that names them.
    """
    convert = Converter(question, columns)
    files = [file for place in named(path) for file in folders.shards(place)]
    forms = [formats.recognise(file, question, convert.columns.asked, media_dir) for file in files]
    folder = Path(os.path.commonpath([form.folder for form in forms]))
    source = Source(name or Path(files[0]).stem, files, [], unit=forms[0].unit, folder=folder)
    source.unread = convert.columns.unread
    checkers, shapes = {}, Counter()
    gc.disable()  # no sample becomes garbage, and checking them all repeatedly takes 1/6 of the time
    try:
        for file, form in zip(files, forms, strict=True):
            linked = os.path.islink(file) and os.path.isfile(file) and not media_dir
            target = Path(file).resolve().parent if linked else None
            if (form.folder, target) not in checkers:
                checkers[form.folder, target] = Checker(form.folder, allow_outside_paths, source.notes,
                                                            task, target)
            convert.start_file(form.folder, form.find_base64)
            before = f"{Path(file).name}:" if len(files) > 1 else ""
            _read_entries(source, form, before, convert, checkers[form.folder, target], shapes)
    except OSError as err:
        raise UserError(f"{file}: can't be read ({err.strerror or err})") from None
    finally:
        gc.enable()
    convert.columns.check(source.path, source.unit)
    guess_tasks(source.samples)
    common = ", ".join(shape for shape, _ in shapes.most_common(3)) or "nothing usable"
    kinds = " and ".join(dict.fromkeys(form.name for form in forms))
    source.kind = f"{kinds}{f', {len(files):,} files' if len(files) > 1 else ''}: {common}"
    return source


def _read_entries(source: Source, form: formats.Format, before: str, convert: Converter, checker: Checker,
                  shapes: Counter) -> None:
    """Add the samples of one file to `source`. A skipped entry is named by `before` and its number."""
    for number, entry in form.entries:
        number = f"{before}{number}" if before else number
        try:
            if isinstance(entry, ValueError):
                raise entry
            for shape, converted in convert(number, entry):
                source.samples.append(checker.sample(converted))
                shapes[shape] += 1
        except ValueError as err:
            source.skipped.append((number, str(err)))
