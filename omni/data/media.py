"""Where a medium's bytes lie: in a file of its own, or in a piece of a file (a tar member, a data: URL).

A piece is named `PATH@OFFSET+SIZE/NAME`, so it goes wherever a path goes, and nothing is ever unpacked to the
disk. `PATH@OFFSET+SIZE~base64/NAME` is one whose bytes are written in base64.
"""

import base64
import binascii
import io
import os
import re
from pathlib import Path

from omni.errors import MediaError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")
_PIECE = re.compile(r"(?s)(.+)@(\d+)\+(\d+)(~base64)?/([^/]*)")


class Piece(str):
    """The name of a piece that a reader of ours made: a text out of a user's file never is one."""

    @classmethod
    def at(cls, path: str | Path, offset: int, size: int, name: str, in_base64: bool = False) -> "Piece":
        encoding = "~base64" if in_base64 else ""
        return cls(f"{path}@{offset}+{size}{encoding}/{name.rsplit('/', 1)[-1]}")


def source(path: str | Path) -> str | io.BytesIO:
    """What a decoder opens: the path of a regular file, or the bytes of a piece. MediaError if there is none.
    """
    piece = None if os.path.isfile(path) else _PIECE.fullmatch(str(path))
    if piece is not None and os.path.isfile(piece[1]):
        return io.BytesIO(_read(*piece.groups()))
    if not os.path.isfile(path):
        raise MediaError("not a regular file" if os.path.exists(path) else "no such file")
    return str(path)


def _read(path: str, offset: str, size: str, encoding: str | None, name: str) -> bytes:
    with open(path, "rb") as f:
        f.seek(int(offset))
        content = f.read(int(size))
    if len(content) < int(size):
        raise MediaError("cut short: the file that holds it ends before it does")
    try:
        return base64.b64decode(content, validate=True) if encoding else content
    except binascii.Error:
        raise MediaError("not valid base64") from None


def size(path: str | Path) -> int:
    """Bytes of a file, or of a piece as its name says; 0 of a file that is not there."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    piece = _PIECE.fullmatch(str(path))
    return int(piece[3]) if piece else 0


def head(source: str | io.BytesIO, count: int) -> tuple[bytes, int]:
    """The first `count` bytes of what `source` returned, and the number of all."""
    with open(source, "rb") if isinstance(source, str) else source as f:
        f.seek(0)
        return f.read(count), f.seek(0, os.SEEK_END)


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def is_sound(name: str) -> bool:
    return name.lower().endswith(SOUNDS)
