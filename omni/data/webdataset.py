"""WebDataset: tar files in which a sample's files follow each other and share a name up to the first dot.

Nothing is unpacked: a medium is a `Piece` of the shard, and is read from it whenever it's needed.
"""

import json
from collections.abc import Iterator
from itertools import chain, groupby, islice
from pathlib import Path
from typing import BinaryIO

from omni.base.errors import UserError
from omni.data import tar
from omni.data.media import Piece, is_audio, is_image, is_medium
from omni.data.tar import Member
from omni.data.texts import MAX_TEXT, Entries

TEXTS = ("txt", "text", "caption", "cls", "transcript", "lab", "json")
_LOOKED_AT = 100  # first samples of a shard, which show whether its samples have media


def entries(paths: list[Path]) -> Entries:
    """(number from 1, entry) of each sample of the shards in order; a ValueError for an unusable one."""
    number = 0
    for path in paths:
        resolved = str(path.resolve())
        with open(path, "rb", buffering=0) as file:
            groups = ((key, list(members)) for key, members in
                      groupby(_members(path, file), key=lambda member: _split(member.name)[0]))
            first = list(islice(groups, _LOOKED_AT))
            with_media = any(is_medium(member.name) for _, members in first for member in members)
            for _, members in chain(first, groups):
                number += 1
                try:
                    yield number, _sample(resolved, file, members, with_media)
                except ValueError as err:
                    yield number, err


def _members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """The files of a shard that are not hidden. UserError if it isn't a plain tar."""
    try:
        for member in tar.members(file):
            # macOS adds ._NAME for each NAME.
            hidden = (member.name[:1] == "." or "/." in member.name) and any(
                part.startswith(".") and part != "." for part in member.name.split("/"))
            if not hidden and "__MACOSX/" not in member.name:
                yield member
    except tar.Damaged as err:
        raise UserError(f"{path}: not a readable tar file ({err}); a compressed one must be "
                        "decompressed first, because media are read from inside it") from None


def _split(name: str) -> tuple[str, str]:
    """"a/0001.left.png" -> ("a/0001", "left.png"), as WebDataset splits names."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _sample(path: str, file: BinaryIO, members: list[Member], with_media: bool) -> dict:
    """The entry of one sample: its texts, its images and clips, and any other file under its ending.

    ValueError if it's unusable: without a text, or without a medium where other samples have one.
    """
    images, audios, entry, texts, others = [], [], {}, {}, {}
    for member in members:
        extension = _split(member.name)[1]
        last = extension.rpartition(".")[2]
        piece = Piece.at(path, member.offset, member.size, member.name)
        if is_image("." + extension):
            images.append(piece)
        elif is_audio("." + extension):
            audios.append(piece)
        elif last in TEXTS:
            if member.size > MAX_TEXT:
                raise ValueError(f"a text longer than {MAX_TEXT} bytes")
            content = _read(file, member)
            if last == "json":
                entry |= _object(content)
            else:
                texts["text" if last in ("txt", "text") else last] = content.strip()
        else:
            others[extension or member.name] = piece
    if not texts and not entry:
        raise ValueError("neither .txt nor .json" + (f", but {', '.join(others)}" if others else ""))
    if with_media and not (images or audios or others):
        raise ValueError("no image or clip beside its text")
    talk = any(key in entry for key in ("messages", "conversations"))
    if len(images) + len(audios) > 1 and not talk:
        raise ValueError("several media and no messages that say where they go")
    # The shard's own media, not the names that the .json may have of them.
    named = {"image", "images", "audio", "audios"} if images or audios else set()
    media = {**({"images": images} if images else {}), **({"audios": audios} if audios else {})}
    return {**{key: value for key, value in entry.items() if key not in named}, **texts, **media, **others}


def _read(file: BinaryIO, member: Member) -> str:
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("its text is not UTF-8") from None


def _object(content: str) -> dict:
    try:
        entry = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    return entry
