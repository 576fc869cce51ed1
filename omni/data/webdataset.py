"""WebDataset: tar files in which a sample's files follow each other and share a name up to the first dot.

Nothing is unpacked: a medium is a `Piece` of the shard, and is read from it whenever it's needed.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from omni.data.conversations import ANSWER, KEPT, QUESTION
from omni.data.media import Piece, is_audio, is_image
from omni.errors import UserError

MAX_TEXT = 1_000_000  # bytes of a .txt or .json member


def shards(paths: list[Path]) -> Iterator[tuple[int, object]]:
    """(number from 1, entry) of each sample in order; a ValueError as the entry of one that can't be used."""
    number = 0
    for path in paths:
        for _, members in groupby(_members(path), key=lambda member: _split(member.name)[0]):
            number += 1
            try:
                yield number, _sample(path.resolve(), list(members))
            except ValueError as err:
                yield number, err


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a shard: no folders, links or sparse files. UserError if it isn't a plain tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and _split(member.name)[1]:
                    yield member
    except tarfile.TarError as err:
        raise UserError(f"{path}: not a readable tar file ({err}); a compressed one must be "
                        "decompressed first, because media are read from inside it") from None


def _split(name: str) -> tuple[str, str]:
    """"a/0001.left.png" -> ("a/0001", "left.png"), as WebDataset splits names."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _sample(path: Path, members: list[tarfile.TarInfo]) -> dict:
    """The entry of one sample: its .json or .txt, with its images and clips. ValueError if it's unusable."""
    images, audios, entry, text = [], [], {}, None
    for member in members:
        extension = _split(member.name)[1]
        if is_image("." + extension):
            images.append(Piece.at(path, member.offset_data, member.size, member.name))
        elif is_audio("." + extension):
            audios.append(Piece.at(path, member.offset_data, member.size, member.name))
        elif extension.endswith(("txt", "json")):
            if member.size > MAX_TEXT:
                raise ValueError(f"a text longer than {MAX_TEXT} bytes")
            content = _read(path, member)
            if extension.endswith("json"):
                entry = _object(content)
            else:
                text = content.strip()
    if text is None and not entry:
        raise ValueError("neither .txt nor .json")
    media = {"images": images, "audios": audios}
    if any(key in entry for key in ("messages", "conversations", "instruction", "query")):
        return {**entry, **media}
    row = {key: entry[key] for key in (*QUESTION, *ANSWER, *KEPT) if isinstance(entry.get(key), str)}
    row = {**row, **({"text": text} if text is not None else {})}
    if len(images) + len(audios) > 1:
        raise ValueError("several media and no messages that say where they go")
    return {**row, **({"image": images[0]} if images else {}), **({"audio": audios[0]} if audios else {})}


def _read(path: Path, member: tarfile.TarInfo) -> str:
    with open(path, "rb") as f:
        f.seek(member.offset_data)
        try:
            return f.read(member.size).decode("utf-8-sig")
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
