"""Checks a converted entry and makes it a `Sample`: turns in order, placeholders and media that agree."""

import re
from collections import Counter
from pathlib import Path

from omni.data import placeholders
from omni.data.media import Piece
from omni.data.paths import MediaPaths
from omni.data.sample import AUDIO, IMAGE, Sample, flat
from omni.data.tasks import guess_task
from omni.data.tokenizer import split_placeholders

MAX_TEXT = 1_000_000  # characters of a sample's messages
# The roles that may follow each role; "" is the start.
NEXT_ROLES = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
_ORDER = "turns must go user, assistant, user, assistant, ..."
_SURROGATE = re.compile("[\ud800-\udfff]")


class Checker:
    """Makes samples of one source's converted entries. `notes` counts dropped turns.

    `task` is the source's; samples without one get it, or else a guess.
    """

    def __init__(self, folder: Path, allow_outside: bool, notes: Counter, task: str = "",
                 target: Path | None = None):
        self.paths = MediaPaths(folder, allow_outside, target)
        self.folder, self.notes, self.task = folder, notes, task

    def sample(self, entry: dict) -> Sample:
        """The sample of a converted entry. ValueError with the reason if it can't be used."""
        untrained: list[int] = []
        if "messages" not in entry:  # plain text: all of it is trained on
            messages = (("assistant", entry["text"]),)
            if not entry["text"].strip():
                raise ValueError("the text is empty")
        else:
            messages, untrained = self._checked(entry["messages"], entry["untrained"])
        length, marked = 0, False  # whether there may be placeholders
        for _, content in messages:
            length += len(content)
            marked = marked or "<" in content
            if not content.isascii() and _SURROGATE.search(content):
                raise ValueError("an unpaired surrogate in a text")
        if length > MAX_TEXT:
            raise ValueError(f"longer than {MAX_TEXT} characters")
        images, audios = entry.get("images", ()), entry.get("audios", ())
        if marked and any(["</" in content for _, content in messages]):
            messages, tagged = placeholders.extract_tags(messages, self.folder)
            if any(listed and tagged.get(mark, listed) != listed
                   for listed, mark in ((images, IMAGE), (audios, AUDIO))):
                raise ValueError("media both in the messages and beside them")
            images, audios = tagged.get(IMAGE, images), tagged.get(AUDIO, audios)
        images = self.paths.find(images, "images") if images else ()
        audios = self.paths.find(audios, "audios") if audios else ()
        if audios and "cut" in entry:
            audios = self._cut(audios, *entry["cut"])
        if marked or images:
            messages, images = placeholders.match(messages, IMAGE, images)
        if marked or audios:
            messages, audios = placeholders.match(messages, AUDIO, audios)
        if untrained or messages[-1][0] != "assistant":
            messages, images, audios = _trim(messages, images, audios, untrained)
            untrained = [i for i in untrained if i < len(messages)]
        transcript = entry.get("transcript", "")
        task = entry.get("task") or self.task or guess_task(messages, images, audios, transcript)
        objects = _objects(entry["objects"]) if "objects" in entry else ()
        return Sample(flat(messages), images, audios, task, entry.get("group", ""), transcript,
                      tuple(untrained), objects)

    def _checked(self, messages: list, untrained: list[int]) -> tuple[tuple[tuple[str, str], ...], list[int]]:
        """The turns, and which answers are not trained on. ValueError if a chat template can't hold them."""
        if not messages:
            raise ValueError('no "messages" list')
        last = ""
        for i, (role, content) in enumerate(messages):
            if not isinstance(content, str):
                raise ValueError("a message needs a text as content")
            if role not in NEXT_ROLES[last]:
                if role == "assistant" and last in ("", "system"):
                    return self._checked(*self._without(messages, untrained, i))
                raise ValueError("a system message that is not the first" if role == "system"
                                 else _ORDER)
            if role == "assistant" and (not content or content.isspace()) and i not in untrained:
                if i + 1 < len(messages):
                    self.notes["an answer is empty: it is not trained on"] += 1
                untrained = [*untrained, i]
            last = role
        if last != "assistant":
            if len(messages) < 3 or messages[-2][0] != "assistant":
                raise ValueError(_ORDER)
            self.notes["a last question has no answer: it is dropped"] += 1
        if untrained:
            answers = [content for role, content in messages if role == "assistant"]
            if len(answers) == len(untrained):
                raise ValueError("no answer is trained on" if answers[-1].strip() else "the answer is empty")
        return tuple(messages), untrained

    def _without(self, messages: list, untrained: list[int], turn: int) -> tuple[list, list[int]]:
        """A conversation that the assistant begins, without its first turn."""
        if len(messages) < turn + 3:
            raise ValueError(_ORDER)
        self.notes["the assistant begins: its first turn is dropped"] += 1
        return messages[:turn] + messages[turn + 1:], [i - (i > turn) for i in untrained if i != turn]

    @staticmethod
    def _cut(audios: tuple[str, ...], start: float, end: float | None) -> tuple[str, ...]:
        if len(audios) > 1:
            raise ValueError("the times of a segment for several clips")
        return (Piece.segment(audios[0], start, end),)


def _trim(messages, images, audios, untrained):
    """Drop the turns after the last answer that is trained on, since nothing is learned from them."""
    end = max(i for i, (role, _) in enumerate(messages) if role == "assistant" and i not in untrained) + 1
    pieces = [piece for _, content in messages[:end] for piece in split_placeholders(content)[1::2]]
    return messages[:end], images[:pieces.count(IMAGE)], audios[:pieces.count(AUDIO)]


def _objects(raw: list) -> tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]:
    """The objects in an image: [{"words": [...], "box": [left, top, right, bottom]}], as fractions."""
    objects = []
    for item in raw:
        words, box = item["words"], item["box"]
        if not (isinstance(words, list) and all(isinstance(w, str) for w in words)
                and isinstance(box, list) and len(box) == 4
                and all(isinstance(v, int | float) and 0 <= v <= 1 for v in box)):
            raise ValueError('"objects" needs words and a box of four numbers from 0 to 1')
        objects.append((tuple(words), tuple(map(float, box))))
    return tuple(objects)
