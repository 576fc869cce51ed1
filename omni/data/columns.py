"""Accounts for every key of a source's entries: it is read, holds nothing to train on, or is reported.

A source is refused if a value that looks like an image, a clip or a video is not read: training would go on
without the medium. The source's "columns" override what its key means.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from omni.base.config_file import COLUMNS
from omni.base.errors import UserError
from omni.data.keys import RANK, role_of, says_medium, snake_case, words
from omni.data.media import Piece, is_audio, is_image, is_medium

# What "columns" of a source may say of a key: a role of `omni.data.keys`, or its name there.
MAPPED = {role: {"transcript": "words", "messages": "talk", "ignore": "nothing"}.get(role, role)
          for role in COLUMNS}
MAX_PLANS = 2_000  # different sets of keys that are remembered
MAX_NAME = 250  # characters of a value that may be a file's name


class Plan(NamedTuple):
    """What each key of an entry means; shared by all entries that have values for the same keys."""

    roles: dict[str, tuple[str, ...]]  # role -> keys, the preferred first
    beside_talk: tuple[str, ...]  # the keys that are not read if the entry is a conversation
    nothing: tuple[str, ...]  # keys that hold nothing to train on
    media: tuple[tuple[str, str], ...]  # ("image" or "audio", a key that holds such media)
    has_media: bool  # whether there are keys that media may be in
    plain: bool  # a conversation with nothing but its media and its system message beside it


# Read beside a conversation, if there are any.
TALK_ROLES = {"system", "start", "end", "duration", "span", "task", "group", "objects", "nothing", "source"}
PLAIN_ROLES = {"talk", "system", "image", "audio", "nothing"}


@dataclass
class Columns:
    """The keys of one source. `mapping` is the source's "columns": {"audio": KEY or [KEY, ...], ...}."""

    mapping: dict[str, str | list[str]] = field(default_factory=dict)
    folder: Path = Path()  # media paths in the entries are relative to it
    unread: Counter = field(default_factory=Counter)  # key -> entries in which its value wasn't read
    lost: dict[str, list] = field(default_factory=dict)  # key of an unread medium -> [entries, first, value]

    def __post_init__(self):
        self.asked = {key: MAPPED[role] for role, keys in self.mapping.items()
                      for key in ([keys] if isinstance(keys, str) else keys)}
        self.nested = [key for key in self.asked if "." in key]
        self.found: set[str] = set()  # keys of `asked` that some entry has
        self.seen: dict[str, None] = {}  # keys of the entries, for messages
        self._plans: dict[tuple[str, ...], Plan] = {}

    def flattened(self, entry: dict) -> dict:
        """The entry with the values that "columns" name as "outer.inner"."""
        more = {}
        for name in self.nested:
            value = entry
            for key in name.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if name not in entry and value is not None:
                more[name] = value
        return {**entry, **more} if more else entry

    def plan(self, entry: dict) -> Plan:
        # An empty value is no value; False and 0 are values.
        present = tuple([key for key, value in entry.items() if value or value == 0])
        plan = self._plans.get(present)
        if plan is None:
            plan = self._new_plan(present)
            if len(self._plans) < MAX_PLANS:
                self._plans[present] = plan
        return plan

    def _new_plan(self, present: tuple[str, ...]) -> Plan:
        roles: dict[str, list[str]] = {}
        outer = {name.partition(".")[0] for name in self.nested}
        for key in present:
            self.seen.setdefault(key)
            if key in self.asked:
                self.found.add(key)
            role = self.asked.get(key) or ("nothing" if key in outer else role_of(key))
            if role == "asker":  # or the name of a person
                role = "question" if "assistant" in present else "nothing"
            roles.setdefault(role, []).append(key)
        order = list(self.asked)
        for keys in roles.values():
            keys.sort(key=lambda key: (order.index(key) if key in self.asked else len(order),
                                       RANK.get(snake_case(key), 0), "url" in words(key)))
        beside = tuple(key for role, keys in roles.items() for key in keys
                       if role not in TALK_ROLES | {"talk"} and snake_case(key) != "transcript"
                       or role in ("image", "audio", "medium")) + tuple(roles.get("talk", ())[1:])
        return Plan({role: tuple(keys) for role, keys in roles.items()}, beside,
                    tuple(roles.get("nothing", ())) + tuple(roles.get("source", ())),
                    tuple((kind, key) for kind in ("image", "audio")
                          for key in _of_media(roles.get(kind, []))),
                    not roles.keys().isdisjoint(("image", "audio", "medium", "source")),
                    "talk" in roles and roles.keys() <= PLAIN_ROLES and "transcript" not in present)

    def account(self, number: int, entry: dict, unread: Iterable[str], plan: Plan, media: list[str]) -> None:
        """Count the keys of an entry that were not read, and note those whose value looks like a medium.

        `media` are those that were read.
        """
        for key in unread:
            if self._is_medium(key, entry[key], media):
                self._lose(number, key, entry[key])
            elif not _same_media(entry[key], media):
                self.unread[key] += 1
        if not media:
            for key in plan.nothing:
                if key not in self.asked and (says_medium(key) or any(map(is_medium, _names(entry[key])))):
                    self._lose(number, key, entry[key])

    def note_lost(self, number: int, entry: dict, plan: Plan, media: dict[str, list]) -> None:
        """Note the media of a skipped entry: it may be skipped because the keys of its media are unknown."""
        read = [path for paths in media.values() for path in paths]
        for role in ("unknown", "medium", "nothing"):
            for key in plan.roles.get(role, ()):
                if not read and key not in self.asked and self._is_medium(key, entry[key], read):
                    self._lose(number, key, entry[key])

    def _lose(self, number: int, key: str, value) -> None:
        self.lost.setdefault(key, [0, number, value])[0] += 1

    def _is_medium(self, key: str, value, media: list[str]) -> bool:
        if isinstance(value, Piece):
            return not media or is_medium(value)
        for name in _names(value):
            if media and ("://" in name or any(path.endswith(name.rsplit("/", 1)[-1]) for path in media)):
                continue  # another name of a medium that is read
            if is_medium(name) or "\0" not in name and os.path.isfile(self.folder / name):
                return True
        return bool(says_medium(key)) and not media

    def check(self, path: str, unit: str) -> None:
        """UserError if a medium isn't read, or if "columns" name a key that no entry has."""
        absent = [key for key in self.asked if key not in self.found]
        if absent and self.seen:
            raise UserError(f'{path}: "columns" name "{absent[0]}", which no entry has; the keys of the '
                            f"entries are: {', '.join(list(self.seen)[:20])}")
        if not self.lost:
            return
        key, (count, first, value) = max(self.lost.items(), key=lambda item: item[1][0])
        names = _names(value)
        kind = "image" if any(map(is_image, names)) else \
            "audio" if any(map(is_audio, names)) else says_medium(key)
        role = kind if kind == "image" else "audio"
        known = KNOWN[kind] if kind in KNOWN else KNOWN["image"] + KNOWN["audio"]
        near = (difflib.get_close_matches(key.lower(), known, 1, 0.4) or known)[0]
        shown = str(value)[:60].replace("\n", " ")
        raise UserError(
            f'{path}: "{key}" looks like a medium ("{shown}", first in {unit} {first}, {count:,}x) and is '
            f'not read; the nearest key that is read is "{near}". Say what it is in its source: "columns": '
            f'{{"{role}": "{key}"}}, or that it holds nothing: "columns": {{"ignore": "{key}"}}')


KNOWN = {"image": ["image", "images", "image_path", "img", "picture", "photo", "path", "file_name"],
         "audio": ["audio", "audios", "audio_path", "audio_filepath", "wav", "sound", "clip", "path",
                   "file_name"]}


def _of_media(keys: list[str]) -> list[str]:
    """The keys to read: image_1 and image_2 hold two media, image and image_path the same one."""
    return keys if all(any(c.isdigit() for c in key) for key in keys) else keys[:1]


def _same_media(value, media: list[str]) -> bool:
    """Whether a value names nothing but media that are read: `path` beside {"audio": {"path": ...}}."""
    names = [name.rsplit("/", 1)[-1] for name in _names(value)]
    return bool(names) and all(is_medium(name) and any(path.endswith(name) for path in media)
                               for name in names)


def _names(value) -> list[str]:
    """The texts in a value that are short enough to be a file's name."""
    if isinstance(value, str):
        return [value] if len(value) <= MAX_NAME and "\n" not in value else []
    if isinstance(value, dict):
        value = list(value.values())
    return [name for item in value[:20] for name in _names(item)] if isinstance(value, list) else []
