"""Reads UTF-8 texts, also those that gzip has compressed, line by line or as a whole."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from omni.base.errors import UserError

Entries = Iterator[tuple[int, object]]  # (number, entry); a ValueError for one that can't be read
GZIP = b"\x1f\x8b"
MAX_TEXT = 1_000_000  # bytes of a text beside a medium
MAX_LINE = 64_000_000  # characters of one entry, base64 included


def is_gzip(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(2) == GZIP


def suffix(path: Path) -> str:
    """The ending that says what a text is: ".jsonl" of "a.JSONL.gz"."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def head(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, decompressed."""
    with _only_user_errors(path):
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as f:
            return f.read(count)


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text. Line ends are not translated: they matter in a table's quoted fields."""
    with _only_user_errors(path), _opened(path) as f:
        if not is_gzip(path):
            yield from f
            return
        number = 0
        while line := f.readline(MAX_LINE + 2):  # a few compressed bytes may hold a line of any length
            number += 1
            if len(line) > MAX_LINE + 1:
                raise UserError(f"{path}, line {number}: longer than {MAX_LINE} characters")
            yield line


def whole(path: Path, limit: int) -> str:
    """All of a UTF-8 text of at most `limit` characters."""
    with _only_user_errors(path), _opened(path, None) as f:
        text = f.read(limit + 1)
        if len(text) > limit:
            raise UserError(f"{path}: larger than {limit >> 30} GB; write one entry per line, as JSON lines")
        return text


def _opened(path: Path, newline: str | None = "") -> TextIO:
    if is_gzip(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return open(path, encoding="utf-8-sig", newline=newline)


@contextmanager
def _only_user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise UserError(f"{path}: damaged or cut short ({err}); get this .gz file again") from None
