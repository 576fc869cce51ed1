"""Where the media stand in a conversation: `<image>` and `<audio>`, and how other projects write them."""

import os
import re
from pathlib import Path

from omni.data.media import is_medium
from omni.data.sample import AUDIO, IMAGE
from omni.data.tokenizer import split_placeholders

Messages = tuple[tuple[str, str], ...]

_BEGINS = re.compile(r"[<\[]|&lt;", re.I)  # how every spelling of a placeholder begins
_NAMES = {IMAGE: "image|img|picture|photo", AUDIO: "audio|sound|speech|voice|wav"}
# <image_1>, <|image_1|>, <|AUDIO|>, <ImageHere>, <|image_pad|>, [IMG], <audio&gt;
_OTHER = {mark: re.compile(rf"(?:<|&lt;|\[)\|?(?:{names})(?:_?(?:pad|token|here|placeholder))?[-_ ]?(\d*)\|?"
                           r"(?:>|&gt;|\])", re.I) for mark, names in _NAMES.items()}
# What some templates write around them: <|vision_start|>, <Img><ImageHere></Img>.
_PAIR = re.compile(r"<(img|image|speech|audio|sound)>\s*((?:<|&lt;)[^<>\s]{1,30}(?:>|&gt;))\s*</\1>", re.I)
_AROUND = re.compile(r"<\|?(?:vision_start|vision_end|audio_bos|audio_eos|im_start|im_end)\|?>", re.I)
# Qwen-VL's <img>PATH</img> and Qwen-Audio's <audio>PATH</audio>.
_TAG = re.compile(r"<(img|image|picture|audio|speech|sound|wav)>\s*([^<>\n]{1,500}?)\s*</\1>", re.I)


def extract_tags(messages: Messages, folder: Path) -> tuple[Messages, dict[str, list[str]]]:
    """The messages with placeholders in place of tags that hold paths, and those paths by placeholder."""
    found: dict[str, list[str]] = {}

    def replace(match: re.Match) -> str:
        mark = IMAGE if match[1].lower() in ("img", "image", "picture") else AUDIO
        name = match[2]
        if not is_medium(name) and "://" not in name and ("\0" in name or not os.path.isfile(folder / name)):
            return match[0]  # HTML or XML
        found.setdefault(mark, []).append(name)
        return mark

    return tuple((role, _TAG.sub(replace, content) if "</" in content else content)
                 for role, content in messages), found


def match(messages: Messages, mark: str, media: tuple[str, ...]) -> tuple[Messages, tuple[str, ...]]:
    """The messages with as many placeholders `mark` as there are `media`, and the media in their order.

    Without placeholders the media go before the first question. Without media a placeholder is text, as in a
    question about HTML, unless a question begins with it: then its medium is missing. ValueError if the
    numbers differ.
    """
    found = 0
    if any([_BEGINS.search(content) for _, content in messages]):
        found = _count(messages, mark)
        if not media:
            _check_lost(messages, mark, found)
        elif found != len(media):
            messages, media, found = _other_spellings(messages, mark, media, found)
    if not media:
        return messages, media
    if found == 0:
        first = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
        if first is None:
            raise ValueError("media in a plain text")
        role, content = messages[first]
        return messages[:first] + ((role, mark * len(media) + content),) + messages[first + 1:], media
    if found != len(media):
        raise ValueError(f"{found} {mark} placeholders for {len(media)} files")
    if any(role == "assistant" and mark in split_placeholders(content)[1::2] for role, content in messages):
        raise ValueError(f"{mark} in an answer")
    return messages, media


def _count(messages: Messages, mark: str) -> int:
    return sum(split_placeholders(content)[1::2].count(mark) for _, content in messages if "<" in content)


def _check_lost(messages: Messages, mark: str, found: int) -> None:
    for role, content in messages:
        content = content.strip() if role == "user" else ""
        begins = _OTHER[mark].match(content) if content.startswith(("<", "&lt;")) else None
        if begins and begins[0].lower() != "<img>" or content.endswith("\n" + mark):
            raise ValueError(f"{found or 1} {mark} placeholders for 0 files")
        if content.startswith("<video>"):
            raise ValueError("video is not supported (<video>)")


def _other_spellings(messages: Messages, mark: str, media: tuple[str, ...], found: int):
    """(messages, media, count) with other spellings of the placeholder replaced, if that makes them fit."""
    messages = tuple((role, _PAIR.sub(r"\2", content)) for role, content in messages)
    mentions = [number for _, content in messages for number in _OTHER[mark].findall(content)]
    if len(mentions) == found:
        return messages, media, found
    if all(mentions):  # numbered: in any order, and a medium may be named again
        numbers = [int(number) - (0 if "0" in {m.lstrip("0") or "0" for m in mentions} else 1)
                   for number in mentions]
        if {*numbers} != {*range(len(media))}:
            raise ValueError(f"{mark} placeholders are numbered {min(mentions)} to {max(mentions)} for "
                             f"{len(media)} files")
        media = tuple(media[number] for number in numbers)
    elif len(mentions) != len(media):
        return messages, media, found
    messages = tuple((role, _AROUND.sub("", _OTHER[mark].sub(mark, content))) for role, content in messages)
    return messages, media, _count(messages, mark)


