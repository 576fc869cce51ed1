"""Reads a source of any format into checked `Sample`s; entries that can't be used are skipped with a reason.

`python -m omni.inspect PATH` shows how a source is read.
"""

import gc
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from omni.data import conversations, formats
from omni.data.media import Piece
from omni.data.sample import AUDIO, IMAGE, TASKS, Sample, flat, guess_task
from omni.data.tokenizer import split_placeholders
from omni.errors import UserError

MAX_TEXT = 1_000_000  # characters of a sample's messages
# The roles that may follow each role; "" is the start.
NEXT_ROLES = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Source:
    """The samples of one source, and the entries that were skipped."""

    name: str
    path: str
    samples: list[Sample]
    skipped: list[tuple[int, str]] = field(default_factory=list)  # (number of the entry, reason)
    unit: str = "line"  # what the numbers count
    kind: str = ""  # the format and the most common shapes of its entries
    folder: Path = Path()  # media paths in the source are relative to it

    def split(self, share: float) -> tuple[list[Sample], list[Sample]]:
        """(training, held-out) samples. About `share` is held out, and at least one sample.

        The split of a sample depends only on its own content. So it stays the same when the source grows, is
        shuffled or is moved, and equal samples are in the same split.
        """
        hashes = [self._hash_of(sample) for sample in self.samples]
        limit = max(share, min(hashes, default=0.0))
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
        return Counter(reason for _, reason in self.skipped)

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
    """The formats that a source's files were recognised as; their total samples, media, skipped entries."""
    kinds = " and ".join(dict.fromkeys(source.kind for source in sources))
    samples = [sample for source in sources for sample in source.samples]
    media = {path for sample in samples for path in sample.images + sample.audios}
    skipped = sum(len(source.skipped) for source in sources)
    return f"{kinds}; {len(samples):,} samples, {len(media):,} media, {skipped:,} skipped"


def read(path: str, name: str = "", allow_outside_paths: bool = False, question: str = "") -> Source:
    """Read the source at `path`, a file or a folder. UserError if it can't be read or its format is unknown.

    Media paths become absolute. Media must exist, but are not opened yet. `question` is used by samples that
    have none.
    """
    form = formats.recognise(path, question)
    source, shapes = Source(name or Path(path).stem, path, [], unit=form.unit, folder=form.folder), Counter()
    gc.disable()  # no sample becomes garbage, and checking them all repeatedly takes 1/6 of the time
    try:
        for number, entry in form.entries:
            try:
                if isinstance(entry, ValueError):
                    raise entry
                shape, entry = conversations.convert(entry, question, form.find_base64)
                source.samples.append(_sample(entry, form.folder, allow_outside_paths))
                shapes[shape] += 1
            except ValueError as err:
                source.skipped.append((number, str(err)))
    except OSError as err:
        raise UserError(f"{path}: can't be read ({err.strerror})") from None
    finally:
        gc.enable()
    common = ", ".join(shape for shape, _ in shapes.most_common(3)) or "nothing usable"
    source.kind = f"{form.name}: {common}"
    return source


def _sample(entry: dict, folder: Path, allow_outside: bool) -> Sample:
    """The sample of a converted entry. ValueError with the reason if it can't be used."""
    untrained: tuple[int, ...] = ()
    if "messages" not in entry:  # plain text: all of it is trained on
        messages = (("assistant", entry["text"]),)
        if not entry["text"].strip():
            raise ValueError("the text is empty")
    else:
        messages = _checked(entry["messages"], entry["untrained"])
        untrained = tuple(entry["untrained"])
    length, placeholders = 0, False  # whether there may be placeholders
    for _, content in messages:
        length += len(content)
        placeholders = placeholders or "<" in content
        if not content.isascii() and _SURROGATE.search(content):
            raise ValueError("an unpaired surrogate in a text")
    if length > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters")
    images = _media(entry["images"], "images", folder, allow_outside) if "images" in entry else ()
    audios = _media(entry["audios"], "audios", folder, allow_outside) if "audios" in entry else ()
    if placeholders or images or audios:
        messages = _match_placeholders(messages, IMAGE, len(images))
        messages = _match_placeholders(messages, AUDIO, len(audios))
    if untrained:
        messages, images, audios = _trim(messages, images, audios, untrained)
        untrained = tuple(i for i in untrained if i < len(messages))
    task = entry.get("task") or guess_task(messages, images, audios)
    if task not in TASKS:
        raise ValueError(f'unknown task "{str(task)[:20]}" (text, qa or asr)')
    group, transcript = entry.get("group", ""), entry.get("transcript", "")
    if not isinstance(group, str) or not isinstance(transcript, str):
        raise ValueError("group and transcript must be texts")
    objects = _objects(entry["objects"]) if "objects" in entry else ()
    return Sample(flat(messages), images, audios, task, group, transcript, untrained, objects)


def _trim(messages, images, audios, untrained):
    """Drop the turns after the last answer that is trained on, since nothing is learned from them."""
    end = max(i for i, (role, _) in enumerate(messages) if role == "assistant" and i not in untrained) + 1
    pieces = [piece for _, content in messages[:end] for piece in split_placeholders(content)[1::2]]
    return messages[:end], images[:pieces.count(IMAGE)], audios[:pieces.count(AUDIO)]


def _objects(raw) -> tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]:
    """The objects in an image: [{"words": [...], "box": [left, top, right, bottom]}], as fractions."""
    objects = []
    for item in raw if isinstance(raw, list) else [None]:
        words, box = (item.get("words"), item.get("box")) if isinstance(item, dict) else (None, None)
        if not (isinstance(words, list) and all(isinstance(w, str) for w in words)
                and isinstance(box, list) and len(box) == 4
                and all(isinstance(v, int | float) and 0 <= v <= 1 for v in box)):
            raise ValueError('"objects" needs words and a box of four numbers from 0 to 1')
        objects.append((tuple(words), tuple(map(float, box))))
    return tuple(objects)


def _checked(messages: list[tuple[str, str]], untrained: list[int]) -> tuple[tuple[str, str], ...]:
    """The turns as a tuple. ValueError if the chat template can't hold them or no answer is trained on."""
    if not messages:
        raise ValueError('no "messages" list')
    last = ""
    for role, content in messages:
        if not isinstance(content, str):
            raise ValueError("a message needs a text as content")
        if role not in NEXT_ROLES[last]:
            raise ValueError("a system message that is not the first" if role == "system"
                             else "turns must go user, assistant, user, assistant, ...")
        last = role
    if last != "assistant":
        raise ValueError("turns must go user, assistant, user, assistant, ...")
    if len(messages) // 2 == len(untrained):
        raise ValueError("no answer is trained on")
    if not content.strip():
        raise ValueError("the answer is empty")
    return tuple(messages)


def _media(raw, key: str, folder: Path, allow_outside: bool) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(p, str) and p for p in raw):
        raise ValueError(f'"{key}" must be a list of paths')
    paths = []
    for name in raw:
        if isinstance(name, Piece):  # a piece of the source itself
            paths.append(name)
            continue
        if "://" in name:
            raise ValueError(f'a web address in "{key}": nothing is fetched, download it first')
        path = (folder / name).resolve() if "\0" not in name else folder / "?"
        if not allow_outside and not path.is_relative_to(folder):
            raise ValueError(f'"{key}" leaves the manifest\'s folder (allow_outside_paths permits it)')
        if not os.path.isfile(path):  # unlike Path.is_file it doesn't raise if the name is too long
            raise ValueError(f'a file of "{key}" is missing')
        paths.append(str(path))
    return tuple(paths)


def _match_placeholders(messages, placeholder: str, count: int):
    """The messages with `count` placeholders; if there are none, they are put before the first question."""
    pieces = [piece for role, content in messages for piece in split_placeholders(content)[1::2]]
    found = pieces.count(placeholder)
    if found == 0 and count:
        first = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
        if first is None:
            raise ValueError("media in a plain text")
        role, content = messages[first]
        return messages[:first] + ((role, placeholder * count + content),) + messages[first + 1:]
    if found != count:
        raise ValueError(f"{found} {placeholder} placeholders for {count} files")
    answers = [content for role, content in messages if role == "assistant"]
    if any(placeholder in split_placeholders(content)[1::2] for content in answers):
        raise ValueError(f"{placeholder} in an answer")
    return messages
