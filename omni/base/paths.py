"""Paths as people write them: `~`, file:// addresses, backslashes, patterns, and paths beside a config."""

import glob
import os
import re
from pathlib import Path
from urllib.parse import unquote

from omni.base.errors import UserError

_FILE = re.compile(r"file:(?://(?:localhost(?=/))?)?", re.I)
_DRIVE = re.compile(r"/[A-Za-z]:[/\\]")  # what is left of file:///C:/x
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 1_000_000


def local(path: str) -> str:
    """A path as the system opens it: `~/x`, file:///x and, where there is no such file, a\\b mean files."""
    if path[:5].lower() == "file:":
        path = unquote(_FILE.sub("", path, count=1))
        path = path[1:] if _DRIVE.match(path) else path
    if path.startswith(("~/", "~\\")) or path == "~":
        path = os.path.expanduser(path.replace("\\", "/"))
    if "\\" in path and os.sep == "/" and not os.path.lexists(path):
        path = path.replace("\\", "/")
    return path


def is_pattern(path: str) -> bool:
    return glob.has_magic(path) or _BRACES.search(path) is not None


def matches(path: str) -> list[str]:
    """The files that a path or a pattern names, sorted: "a/*.jsonl", "b-{000..031}.tar". [] if none."""
    path = local(path)
    if os.path.exists(path) or not is_pattern(path):
        return [path]
    braces = _BRACES.search(path)
    if braces is None:
        return sorted(glob.glob(path, recursive=True))
    first, last = int(braces[1]), int(braces[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise UserError(f"{path}: {braces[0]} needs a first number that is not above the last")
    names = [f"{path[:braces.start()]}{number:0{len(braces[1])}}{path[braces.end():]}"
             for number in range(first, last + 1)]
    return [file for name in names for file in matches(name)]


def named(paths: str | list[str]) -> list[str]:
    """The files of a source: a path, a pattern or a list of these. UserError if a pattern has none."""
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        files = matches(path)
        if not files:
            raise UserError(f"{path}: no file matches this pattern; it was looked for in "
                            f"{os.path.abspath(os.path.dirname(local(path).partition('*')[0]))}")
        found += files
    return list(dict.fromkeys(found))


def shown(files: list[str]) -> str:
    """The files of a source, for messages: the first, and how many more there are."""
    return files[0] + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")


def from_config(path: str, config: str) -> str:
    """An input path of a config file: from the working folder, or else from the config's own.

    A path that is in neither stays as it is: it may be the name of a repository, or be missing.
    """
    own = local(path)
    if not path or os.path.isabs(own) or "://" in own or _exists(own):
        return own
    beside = str(Path(config).parent / own)
    return beside if _exists(beside) else own


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path) or is_pattern(path) and any(map(os.path.exists, matches(path)))
    except (ValueError, UserError):  # a null character, or braces that count down: named where it is read
        return False
