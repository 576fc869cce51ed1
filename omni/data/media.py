"""Where a medium's bytes are: a file of its own, or a piece of a file (a tar member, a data: URL, a cell).

A piece is named `PATH@OFFSET+SIZE/NAME`, or `PATH@OFFSET+SIZE~base64/NAME` if its bytes are in base64, or
`PATH@ROW+SIZE~parquetCOLUMN.PLACE/NAME` if they are a value in a row of a Parquet file. It can be used
wherever a path can, so nothing is ever unpacked to the disk. A segment of a clip is named `PATH#t=START,END`
in seconds; an absent END is the end of the clip.
"""

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omni.base.errors import MediaError
from omni.data import parquet

# Endings by which a file is known to be a medium. Some can't be decoded here: their samples are skipped and
# named.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm",
                  ".jfif", ".jpe", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".ico", ".tga", ".svg")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd",
                  ".m4a", ".aac", ".wma", ".amr", ".mp2", ".sph", ".caf", ".w64", ".rf64", ".weba", ".mka",
                  ".ac3", ".wave")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")
_PIECE = re.compile(r"(?s)(.+)@(\d+)\+(\d+)(~base64|~parquet\d+\.\d+)?/([^/]*)")
_SEGMENT = re.compile(r"(?s)(.+)#t=([\d.]+),([\d.]*)")


class Piece(str):
    """The name of a piece, made by our own readers. A path in a user's file stays a plain `str`."""

    __slots__ = ()  # room for attributes would take 200 bytes of each

    @classmethod
    def at(cls, path: str | Path, offset: int, size: int, name: str, in_base64: bool = False) -> "Piece":
        encoding = "~base64" if in_base64 else ""
        return cls(f"{path}@{offset}+{size}{encoding}/{name.rsplit('/', 1)[-1]}")

    @classmethod
    def in_row(cls, path: str, row: int, size: int, column: int, place: int, name: str) -> "Piece":
        """The value at `place` of a row's values in `column`, all counted from 0; `size` is an estimate."""
        return cls(f"{path}@{row}+{size}~parquet{column}.{place}/{name}")

    @classmethod
    def segment(cls, path: str, start: float, end: float | None) -> "Piece":
        """The seconds from `start` to `end` of the clip at `path`; None for its end."""
        last = "" if end is None else f"{end:.6f}".rstrip("0").rstrip(".")
        return cls(f"{path}#t={f'{start:.6f}'.rstrip('0').rstrip('.')},{last}")


def split_segment(path: str | Path) -> tuple[str | Path, float, float | None]:
    """The clip that a name means, and where it begins and ends in seconds (0 and None for a whole clip)."""
    found = _SEGMENT.fullmatch(path) if isinstance(path, Piece) or not os.path.isfile(path) and \
        isinstance(path, str) else None
    return (found[1], float(found[2]), float(found[3]) if found[3] else None) if found else (path, 0.0, None)


@contextmanager
def only_media_errors(what: str, path: str | Path) -> Iterator[None]:
    """Turn every exception of the `with` block into a MediaError: "not readable as `what` (reason)".

    Given a damaged file, a decoder may raise anything: ValueError, struct.error, MemoryError. All code that
    opens or decodes a medium runs in this block, so its callers need to expect MediaError alone.
    """
    try:
        yield
    except MediaError:
        raise
    except MemoryError:
        raise MediaError("decoding it takes too much memory") from None
    except Exception as err:
        text = " ".join(str(getattr(err, "strerror", None) or err).split())[:80]
        reason = text if text and str(path) not in text else type(err).__name__
        raise MediaError(f"not readable as {what} ({reason})") from None


def source(path: str | Path) -> str | io.BytesIO:
    """What a decoder opens: the path of a regular file, or the bytes of a piece; else a MediaError."""
    piece = _piece(path)
    if piece is not None and os.path.isfile(piece[1]):
        return io.BytesIO(_read(*piece.groups()))
    if not os.path.isfile(path):
        raise MediaError("not a regular file" if os.path.exists(path) else "no such file")
    return str(path)


def _piece(path: str | Path) -> re.Match | None:
    """The parts of a piece's name; None if it isn't one, or if there is a file of this name."""
    return None if os.path.isfile(path) else _PIECE.fullmatch(str(path))


def _read(path: str, offset: str, size: str, encoding: str | None, name: str) -> bytes:
    if encoding and encoding.startswith("~parquet"):
        column, _, place = encoding.removeprefix("~parquet").partition(".")
        return parquet.read(path, int(offset), int(column), int(place))
    with open(path, "rb") as f:
        f.seek(int(offset))
        content = f.read(int(size))
    if len(content) < int(size):
        raise MediaError("cut short: the file that holds it ends too early")
    try:
        return base64.b64decode(content, validate=True) if encoding else content
    except binascii.Error:
        raise MediaError("not valid base64") from None


def digest(path: str | Path) -> bytes:
    """A hash of a medium's bytes. MediaError if they can't be read."""
    with only_media_errors("a file", path):
        found = source(path)
        with open(found, "rb") if isinstance(found, str) else found as f:
            return hashlib.blake2b(f.read(), digest_size=16).digest()


def name(path: str) -> bytes:
    """The file name alone; a name that is not UTF-8 becomes \\udcXX."""
    return os.path.basename(path).encode("utf-8", "backslashreplace")


def size(path: str | Path) -> int:
    """Bytes of a file, or of a piece as its name says, which is a mean for Parquet; 0 if there is no file."""
    path, _, _ = split_segment(path)
    if os.path.isfile(path):
        return os.path.getsize(path)
    piece = _PIECE.fullmatch(str(path))
    return int(piece[3]) if piece else 0


def file_of(path: str) -> str:
    """The file that holds a medium: its own, or that of which it is a piece."""
    if not isinstance(path, Piece):
        return path
    path, _, _ = split_segment(path)
    piece = _piece(path)
    return piece[1] if piece else str(path)


def head(source: str | io.BytesIO, count: int) -> tuple[bytes, int]:
    """The first `count` bytes of what `source` returned, and its size in bytes."""
    with open(source, "rb") if isinstance(source, str) else source as f:
        f.seek(0)
        return f.read(count), f.seek(0, os.SEEK_END)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_audio(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES)


def is_medium(name: str) -> bool:
    """Whether a name ends as those of images, clips and videos do."""
    return name.lower().endswith(IMAGE_SUFFIXES + AUDIO_SUFFIXES + VIDEO_SUFFIXES)
