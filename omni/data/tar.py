"""The members of a tar file: their names, and where their bytes are.

Several times faster than `tarfile`, which matters because a run reads the headers of all its shards when it
starts.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_NAME = 1 << 20  # bytes of a header that holds a long name
_FILES = b"0\x007"  # types of regular files
_WITHOUT_DATA = b"123456"  # links, devices, folders


class Damaged(Exception):
    """A tar file that can't be read to its end."""


class Member(NamedTuple):
    """A regular file in a tar file."""

    name: str
    offset: int  # of its first byte
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The regular files in an unbuffered tar file, without sparse ones. Damaged if it is not whole."""
    end, place = file.seek(0, 2), 0
    name, size, sparse = "", None, False  # what a header before a member's own says of it
    while True:
        header = _block(file, place)
        if not header.strip(b"\0"):  # two empty blocks, or nothing, are the end
            if place == 0:
                raise Damaged("empty file")
            return
        kind, length = header[156], _number(header[124:136])
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise Damaged("not a tar header" if place == 0 else f"damaged at byte {place}")
        data = place + BLOCK
        if kind == ord("S"):  # GNU's sparse file: its map may go on in further blocks
            more = header[482]
            while more:
                more = _block(file, data)[504]
                data += BLOCK
        own = kind in b"xL"
        if not own and size is not None:
            length = size
        if kind in _WITHOUT_DATA:
            length = 0
        if length < 0 or data + length > end:
            raise Damaged(f"cut short: a file that begins at byte {data} has {length} bytes")
        if own:
            if length > MAX_NAME:
                raise Damaged(f"damaged at byte {place}")
            content = _bytes(file, data, length)
            if kind == ord("L"):
                name = _text(content)
            else:
                more_name, size, sparse = _extended(content, place)
                name = more_name or name
        elif kind not in b"Kg":  # a long link's name, and what holds for all members
            found = name or _name(header)
            if kind in _FILES and not sparse and not found.endswith("/"):
                yield Member(found, data, length)
            name, size, sparse = "", None, False
        place = data + -(-length // BLOCK) * BLOCK


def _bytes(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _block(file: BinaryIO, place: int) -> bytes:
    block = _bytes(file, place, BLOCK)
    if 0 < len(block) < BLOCK:
        raise Damaged("cut short within a header")
    return block


def _number(field: bytes) -> int:
    """Octal digits, or the bytes of a number after 0x80. -1 if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0").partition(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return -1


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _extended(content: bytes, place: int) -> tuple[str, int | None, bool]:
    """(path, size, whether the file is sparse) of a pax header: records "LENGTH KEY=VALUE\\n"."""
    name, size, sparse = "", None, False
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or len(length) > 7 or not len(length) < int(length) <= len(content):
            raise Damaged(f"damaged at byte {place}")
        key, _, value = content[len(length) + 1:int(length) - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
        sparse = sparse or key.startswith(b"GNU.sparse.")
        content = content[int(length):]
    return name, size, sparse
