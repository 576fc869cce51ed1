"""Converts one entry of a published dataset to one form: (role, content) pairs and lists of media.

`omni.data.keys` says what an entry's keys are, and so its shape: a conversation (`messages`, `conversations`;
see `omni.data.turns`), or a row with a medium or a question, and an answer (`omni.data.rows`), or plain text.
The result is checked in `omni.data.checks`. A ValueError is the reason to skip the entry. Nothing is fetched
from the network.
"""

import json
from pathlib import Path

from omni.base.config_file import TASKS
from omni.data import rows, turns
from omni.data.columns import Columns, Plan
from omni.data.keys import in_milliseconds
from omni.data.media import Piece, is_audio, is_image
from omni.data.media_values import media_paths, no_base64

OBJECT_MARKS = ("<ref-object>", "<bbox>")  # ms-swift's placeholders for `objects`
TIMES = ("start", "end", "duration", "span")


class Converter:
    """Converts the entries of one source, and accounts for their keys in `columns`.

    `question` is used by entries that have none.
    """

    def __init__(self, question: str = "", columns: dict | None = None):
        self.question, self.find_base64 = question, no_base64
        self.columns = Columns(columns or {})

    def start_file(self, folder: Path, find_base64) -> None:
        """Go on with the entries of another file, whose media are in `folder`.

        `find_base64(payload, name)` returns the `Piece` of the file that holds a base64 text.
        """
        self.columns.folder, self.find_base64 = folder, find_base64

    def __call__(self, number: int, entry) -> list[tuple[str, dict]]:
        """The samples of an entry: (the shape's name, the converted entry). ValueError if it can't be used.

        A converted entry holds `messages` [(role, content), ...]; `untrained`, the indices of the answers
        that are not trained on; `images` and `audios`, lists of paths; `cut`, the (start, end) of its clip in
        seconds; `task`, `group`, `transcript` and `objects`. Plain text has `text` instead of
        `messages`.
        """
        if isinstance(entry, list) and len(entry) == 3 and all(isinstance(v, str) for v in entry[:2]):
            return [("easy-VQA", {"messages": turns.pairs([(entry[0], entry[1])]), "untrained": [],
                                  "images": [f"images/{entry[2]}.png"]})]
        if not isinstance(entry, dict):
            raise ValueError("not a JSON object")
        if self.columns.nested:
            entry = self.columns.flattened(entry)
        plan = self.columns.plan(entry)
        roles = plan.roles
        if not plan.plain:
            self._refuse(entry, roles)
        media, read = self._media(entry, plan) if plan.has_media else ({}, [])
        if talk := self._talk(entry, plan, media):
            kind, converted, also_read = talk
            unread = [key for key in plan.beside_talk if key not in also_read and key not in read] \
                if plan.beside_talk else ()
        else:
            try:
                kind, converted, also_read = rows.convert(entry, plan, media, self.question)
            except ValueError:
                self.columns.note_lost(number, entry, plan, media)
                raise
            read += also_read
            unread = [key for role, keys in roles.items() if role not in ("nothing", "source")
                      for key in keys if key not in read]
        if plan.plain and not unread and (not plan.nothing or converted.get("images")
                                          or converted.get("audios")):
            return [(kind, converted)]
        own, odd = self._own(entry, roles)
        if "objects" in roles and "objects" not in own and any(
                mark in str(text) for _, text in converted.get("messages", ()) for mark in OBJECT_MARKS):
            raise ValueError(f'places for "{roles["objects"][0]}", which are not read '
                             f'({", ".join(OBJECT_MARKS)})')
        converted = {**converted, **own}
        if not roles.keys().isdisjoint(TIMES) and converted.get("audios"):
            cut, of_times = self._times(entry, roles)
            if cut is not None:
                converted["cut"] = cut
            unread = [key for key in unread if key not in of_times]
        if unread or odd or plan.nothing:
            paths = [*converted.get("images", ()), *converted.get("audios", ())]
            own_keys = {key for role in ("task", "group", "objects") for key in roles.get(role, ())}
            unread = [key for key in unread if key not in own_keys] + odd
            self.columns.account(number, entry, unread, plan, paths)
        return self._one_by_one(kind, converted)

    @staticmethod
    def _refuse(entry: dict, roles: dict) -> None:
        marks = roles.get("kto_tag", ())
        if "talk" in roles or "answer" in roles:
            marks += roles.get("label", ())
        if any(entry[key] is False for key in marks):
            raise ValueError("marked as a bad answer")
        if "video" in roles:
            raise ValueError(f'video is not supported ("{roles["video"][0]}")')
        if "chosen" in roles and "rejected" in roles:
            raise ValueError("a preference pair, which is not for supervised training")

    def _media(self, entry: dict, plan: Plan) -> tuple[dict[str, list], list[str]]:
        """({"images": [...], "audios": [...]} as far as the entry lists any, the keys that were read)."""
        roles = plan.roles
        found, read = {}, []
        for kind, key in plan.media:
            found.setdefault(f"{kind}s", []).extend(media_paths(entry[key], kind, self.find_base64))
            read.append(key)
        key = next(iter(roles.get("medium", ())), None)
        if key is None and "source" in roles and _is_medium_of(entry[roles["source"][0]]):
            key = roles["source"][0]
        if key is not None:
            value = entry[key]
            for many, is_kind in (("images", is_image), ("audios", is_audio)):
                if many not in found and _is_medium_of(value, is_kind):
                    found[many] = media_paths(value, many[:-1], self.find_base64)
                    read.append(key)
                    break
        return found, read

    def _talk(self, entry: dict, plan: Plan, media: dict) -> tuple[str, dict, list[str]] | None:
        """(the shape's name, the converted entry, the keys that were read) of a conversation."""
        roles = plan.roles
        if "talk" not in roles:
            if "question" not in roles:
                return None
            turn_list = rows.prompt_and_completion(entry, roles)
            if turn_list is None:
                return None
            return "prompt and completion", turns.convert(turn_list, media, self), \
                [roles["question"][0], roles["answer"][0]]
        key = roles["talk"][0]
        value = entry[key]
        if isinstance(value, str) and value.lstrip().startswith("["):  # a table's column
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        if not isinstance(value, list) or not value or any([type(turn) is not dict for turn in value]):
            if key == "messages":
                raise ValueError('no "messages" list')
            return None
        system = next((entry[k] for k in roles.get("system", ())), None)
        name = "messages" if key == "messages" else "LLaVA" if media.get("images") else "ShareGPT"
        return name, turns.convert(value, media, self, system), [key]

    def _own(self, entry: dict, roles: dict) -> tuple[dict, list[str]]:
        """(task, group, objects, transcript in our own form; keys of the first three in another form)."""
        own, odd = {}, []
        if "task" in roles:
            key = roles["task"][0]
            if entry[key] in TASKS:
                own["task"] = entry[key]
            else:
                odd.append(key)
        if "group" in roles:
            key = roles["group"][0]
            if isinstance(entry[key], str):
                own["group"] = entry[key]
            else:
                odd.append(key)
        if "objects" in roles:
            key = roles["objects"][0]
            value = entry[key]
            if isinstance(value, list) and value and all(
                    isinstance(item, dict) and "words" in item and "box" in item for item in value):
                own["objects"] = value
            else:
                odd.append(key)
        if "transcript" in entry and "talk" in roles and isinstance(entry["transcript"], str):
            own["transcript"] = entry["transcript"]
        return own, odd

    @staticmethod
    def _times(entry: dict, roles: dict) -> tuple[tuple[float, float | None] | None, list[str]]:
        """((start, end) of the segment in seconds, or None for the whole clip; the keys that were read)."""
        keys = {role: roles[role][0] for role in TIMES if role in roles}
        span = entry[keys["span"]] if "span" in keys else None
        if isinstance(span, list) and len(span) == 2 and all(isinstance(v, int | float) for v in span):
            start, end = (_seconds(value, keys["span"]) for value in span)
        else:
            keys.pop("span", None)
            found = {role: _seconds(entry[key], key) for role, key in keys.items()}
            start = found.get("start", 0.0)
            end = found.get("end", start + found["duration"] if "duration" in found else None)
            # A duration alone is that of the clip.
            if "start" not in found and "end" not in found or end is None and start == 0:
                return None, [*keys.values()]
        if end is not None and end <= start:
            raise ValueError(f"a segment from {start:g} to {end:g} s")
        return (start, end), [*keys.values()]

    def _one_by_one(self, kind: str, converted: dict) -> list[tuple[str, dict]]:
        """A sample for each caption of an entry that has several."""
        captions = converted.pop("captions", None)
        if captions is None:
            return [(kind, converted)]
        return [(kind, {**converted, "messages": [*converted["messages"][:-1], ("assistant", caption)]})
                for caption in captions]


def _is_medium_of(value, is_kind=lambda name: is_image(name) or is_audio(name)) -> bool:
    if isinstance(value, dict):
        value = next((value[key] for key in ("path", "url", "file") if isinstance(value.get(key), str)), None)
    if isinstance(value, list):
        value = value[0] if value else None
    return isinstance(value, str) and (is_kind(value) or isinstance(value, Piece) and is_kind(value))


def _seconds(value, key: str) -> float:
    """A time as a number, or as "h:mm:ss.s". ValueError if it is neither."""
    try:
        number = 0.0
        for part in value.split(":") if isinstance(value, str) else [value]:
            number = number * 60 + float(part)
    except (TypeError, ValueError):
        raise ValueError(f'"{key}" is not a time in seconds') from None
    if not 0 <= number < 1e12:
        raise ValueError(f'"{key}" is not a time in seconds')
    return number / 1000 if in_milliseconds(key) else number


def convert(messages: list) -> dict:
    """The converted entry of messages that are in no source, such as those of a chat."""
    if not messages:
        return {"messages": []}
    ((_, converted),) = Converter()(1, {"messages": messages})
    return converted
