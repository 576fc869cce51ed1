"""One line of a manifest -> one checked `Sample`. What can't be used is counted by its reason."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from omni import tasks
from omni.batch import AUDIO, IMAGE, Sample
from omni.config import UserError
from omni.tokenizer import split_placeholders

MAX_LINE = 1_000_000  # characters


@dataclass
class Source:
    """The samples of one manifest, with what was skipped and why."""

    name: str
    path: str
    samples: list[Sample]
    skipped: list[tuple[int, str]] = field(default_factory=list)  # (line number, reason)

    def reasons(self) -> Counter:
        return Counter(reason for _, reason in self.skipped)

    def check(self, max_skipped: float) -> "Source":
        """Itself, or a UserError if nothing or too little of it can be used."""
        total = len(self.samples) + len(self.skipped)
        if not self.samples or len(self.skipped) > max_skipped * total:
            common = self.reasons().most_common(3)
            reasons = "; ".join(f"{n}x {reason}" for reason, n in common) or "it is empty"
            line = f" (first on line {self.skipped[0][0]})" if self.skipped else ""
            raise UserError(f"{self.path}: {len(self.skipped)} of {total} samples can't be used: "
                            f"{reasons}{line}. Mend them or raise max_skipped (now {max_skipped:g})")
        return self


def read(path: str, name: str = "", allow_outside_paths: bool = False) -> Source:
    """Read the JSONL manifest at `path`. Media paths become absolute; files are looked for, not opened."""
    source = Source(name or Path(path).stem, path, [])
    folder = Path(path).resolve().parent
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise OSError(0, "not a regular file")
        file = open(path, encoding="utf-8-sig")
    except OSError as err:
        raise UserError(f"{path}: can't open this manifest ({err.strerror}); "
                        "data_mix or data_dir names it") from None
    with file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        source.samples.append(_sample(line, folder, allow_outside_paths))
                    except ValueError as err:
                        source.skipped.append((number, str(err)))
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    return source


def _sample(line: str, folder: Path, allow_outside: bool) -> Sample:
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} characters")
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    if "messages" not in entry and isinstance(entry.get("text"), str):  # plain text: all of it is trained on
        messages = (("assistant", entry["text"]),)
        if not entry["text"].strip():
            raise ValueError("the text is empty")
    else:
        messages = _messages(entry.get("messages"))
    if any("\ud800" <= c <= "\udfff" for _, content in messages for c in content):
        raise ValueError("half a surrogate pair in a text")
    images = _media(entry.get("images", []), "images", folder, allow_outside)
    audios = _media(entry.get("audios", []), "audios", folder, allow_outside)
    messages = _place(messages, IMAGE, len(images))
    messages = _place(messages, AUDIO, len(audios))
    task = entry.get("task") or tasks.guess(messages, images, audios)
    if task not in tasks.TASKS:
        raise ValueError(f'unknown task "{str(task)[:20]}" (text, qa or asr)')
    group, transcript = entry.get("group", ""), entry.get("transcript", "")
    if not isinstance(group, str) or not isinstance(transcript, str):
        raise ValueError("group and transcript must be texts")
    return Sample(messages, images, audios, task, group, transcript, _objects(entry.get("objects", [])))


def _objects(raw) -> tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]:
    """What is where in a picture: [{"words": [...], "box": [left, top, right, bottom as shares]}]."""
    objects = []
    for item in raw if isinstance(raw, list) else [None]:
        words, box = (item.get("words"), item.get("box")) if isinstance(item, dict) else (None, None)
        if not (isinstance(words, list) and all(isinstance(w, str) for w in words)
                and isinstance(box, list) and len(box) == 4
                and all(isinstance(v, int | float) and 0 <= v <= 1 for v in box)):
            raise ValueError('"objects" needs words and a box of four shares from 0 to 1 each')
        objects.append((tuple(words), tuple(map(float, box))))
    return tuple(objects)


def _messages(raw) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, list) or not raw:
        raise ValueError('no "messages" list')
    messages = []
    for turn in raw:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise ValueError("a message needs a role (system, user, assistant) and a text as content")
        messages.append((role, content))
    roles = [role for role, _ in messages]
    if "system" in roles[1:]:
        raise ValueError("a system message that is not the first")
    talk = roles[1:] if roles[0] == "system" else roles
    if talk != ["user", "assistant"] * (len(talk) // 2) or not talk:
        raise ValueError("turns must go user, assistant, user, assistant, ...")
    if not messages[-1][1].strip():
        raise ValueError("the answer is empty")
    return tuple(messages)


def _media(raw, key: str, folder: Path, allow_outside: bool) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(p, str) and p for p in raw):
        raise ValueError(f'"{key}" must be a list of paths')
    paths = []
    for name in raw:
        path = (folder / name).resolve() if "\0" not in name else folder / "?"
        if not allow_outside and not path.is_relative_to(folder):
            raise ValueError(f'"{key}" leaves the manifest\'s folder (allow_outside_paths permits it)')
        if not os.path.isfile(path):  # False where Path.is_file raises: a name too long
            raise ValueError(f'a file of "{key}" is missing')
        paths.append(str(path))
    return tuple(paths)


def _place(messages, placeholder: str, count: int):
    """The messages, with as many placeholders as media: where there are none, before the first question."""
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
