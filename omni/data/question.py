"""A question as a user types it: files that are dragged into a terminal, and where its media stand."""

import os
import re
import shlex

from omni.base.errors import UserError
from omni.base.paths import local
from omni.data.media import is_audio, is_image
from omni.data.sample import AUDIO, IMAGE
from omni.data.tokenizer import split_placeholders

# A word that may be a dragged file: in quotes, with escaped spaces, or as a URL.
_DRAGGED = re.compile(r"""(?<!\S)('(?:[^']|'\\'')*'|"[^"]*"|(?:file://|~?/)(?:\\.|[^\s\\])*)(?!\S)""", re.I)


def question_parts(question: str, images: list[str], audios: list[str]) -> list[dict]:
    """A question as content parts, with media in place of its <image> and <audio>.

    If there are more files than placeholders, the first ones go before the question. Without files a
    placeholder is text. UserError if there are fewer.
    """
    left = {IMAGE: list(images), AUDIO: list(audios)}
    counts = {placeholder: question.count(placeholder) if paths else 0 for placeholder, paths in left.items()}
    parts = []
    for placeholder, paths in left.items():
        if counts[placeholder] > len(paths):
            raise UserError(f"the question has more {placeholder} placeholders than files were given")
        parts += [media_part(placeholder, paths.pop(0)) for _ in range(len(paths) - counts[placeholder])]
    for i, piece in enumerate(split_placeholders(question)):  # every second piece is a placeholder
        is_medium = i % 2 and counts[piece]
        parts.append(media_part(piece, left[piece].pop(0)) if is_medium else {"type": "text", "text": piece})
    return parts


def media_part(placeholder: str, path: str) -> dict:
    kind = placeholder[1:-1]
    return {"type": kind, kind: path}


def typed_path(text: str) -> str:
    """The path that a user typed or dragged: as it is, in quotes, with escapes, with ~, or as file://."""
    text = text.strip()
    if not os.path.exists(local(text)):
        try:
            words = shlex.split(text)
        except ValueError:  # a single quote, as in it's.png
            words = []
        text = words[0] if len(words) == 1 else text.strip("\"'")
    return local(text)


def take_dragged(line: str) -> tuple[str, list[str], list[str]]:
    """A line with placeholders in place of the media files that are named in it, and those images and clips.

    Only whole paths of files that exist are taken.
    """
    images, audios = [], []

    def replace(match: re.Match) -> str:
        path = typed_path(match[0])
        if not os.path.isabs(path) or not os.path.isfile(path) or not (is_image(path) or is_audio(path)):
            return match[0]
        (images if is_image(path) else audios).append(path)
        return IMAGE if is_image(path) else AUDIO

    return _DRAGGED.sub(replace, line), images, audios


def spelled_out(messages: list[dict], placeholder: str) -> list[dict]:
    """The messages, with each `placeholder` in their texts turned into plain text: "<audio >"."""
    text = f"{placeholder[:-1]} >"

    def changed(content):
        if isinstance(content, str):
            return content.replace(placeholder, text)
        if isinstance(content, list):
            return [part | {"text": changed(part["text"])} if isinstance(part, dict) and
                    isinstance(part.get("text"), str) else part for part in content]
        return content

    return [message | {"content": changed(message.get("content"))} if isinstance(message, dict) else message
            for message in messages]
