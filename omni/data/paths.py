"""Finds the files that a source names in its folder, also where published names leave out a part."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from omni.base.paths import local
from omni.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Piece, is_audio, is_image

# Published tables name a file without its folder or its ending (Common Voice, LJSpeech, VQA).
_FOLDERS = {"images": ("images", "image", "imgs", "img", "pictures", "photos", "data", "media", "train",
                       "val", "test"),
            "audios": ("clips", "wavs", "wav", "audio", "audios", "data", "media", "train", "dev", "test")}
MAX_FOLDERS = 20  # in which a file is looked for
LISTED_AFTER = 1000  # lookups in a folder before all its names are read at once
_ENDINGS = {"images": IMAGE_SUFFIXES, "audios": AUDIO_SUFFIXES}
_MISSING = " is missing: "


class MediaPaths:
    """Absolute paths of media. A path may not leave the source's folder unless `allow_outside`.

    `target` is the folder of the file that a linked manifest is a link to: media that aren't beside the link
    may be there.
    """

    def __init__(self, folder: Path, allow_outside: bool, target: Path | None = None):
        self.folder, self.allow_outside = str(folder), allow_outside  # an absolute path without links
        self._inside = self.folder.rstrip(os.sep) + os.sep
        self._blobs = _blobs_of(folder)
        self._listings = Listings()
        self._other = MediaPaths(target, allow_outside) if target not in (None, folder) else None
        self._below: dict[str, list[str]] = {}  # kind -> folders in which to look
        self._last: dict[str, tuple[str, str]] = {}  # kind -> the folder and ending that were found last

    def find(self, names: list, kind: str) -> tuple[str, ...]:
        """The paths of `names`; `kind` is images or audios. ValueError if one can't be used."""
        return tuple([name if isinstance(name, Piece) else self._find(name, kind) for name in names])

    def _find(self, name: str, kind: str) -> str:
        if name.startswith("~") or name[:5].lower() == "file:":
            name = local(name)
        if "://" in name:
            raise ValueError(f'a web address in "{kind}": nothing is fetched, download it first')
        if "\0" in name:
            raise ValueError(f'a file of "{kind}"{_MISSING}{_shown(name)}')
        if kind in self._last:
            before, after = self._last[kind]
            path = os.path.join(self.folder, before, name + after)
            if real := self._listings.find(path):
                return self._checked(path, kind, real)
            if os.path.isfile(path):
                return self._checked(path, kind)
        first = os.path.join(self.folder, name)
        if real := self._listings.find(first):
            return self._checked(first, kind, real)
        path = self._checked(first, kind)
        if os.path.isfile(path):  # unlike Path.is_file it doesn't raise if the name is too long
            return path
        name = name.replace("\\", "/")
        complete = (is_image if kind == "images" else is_audio)(name)
        for before in self._folders(kind):
            for after in ("",) if complete else ("", *_ENDINGS[kind], *map(str.upper, _ENDINGS[kind])):
                path = os.path.join(self.folder, before, name + after)
                if os.path.isfile(path):
                    self._last[kind] = before, after
                    return self._checked(path, kind)
        if self._other is not None:
            return self._other._find(name, kind)
        raise ValueError(f'a file of "{kind}"{_MISSING}{_shown(first)}')

    def _folders(self, kind: str) -> list[str]:
        """The source's folder and those in it, the most likely ones first."""
        if kind not in self._below:
            names = {entry.name for entry in os.scandir(self.folder) if entry.is_dir()
                     and entry.name[0] != "."}
            order = _FOLDERS[kind]
            names = sorted(names, key=lambda name: (order.index(name.lower()) if name.lower() in order else
                                                    len(order), name))
            self._below[kind] = ["", *names[:MAX_FOLDERS]]
        return self._below[kind]

    def _checked(self, path: str, kind: str, real: str = "") -> str:
        real = real or _real(path)
        if self._blobs and real.startswith(self._blobs):
            path = os.path.normpath(path)
            if path.startswith(self._inside):
                return path  # a blob's own name is a hash and says nothing
        if not self.allow_outside and not real.startswith(self._inside) and real != self.folder:
            raise ValueError(f'"{kind}" leaves the manifest\'s folder (allow_outside_paths permits it)')
        return real


class Listings:
    """Finds files by the names in their folder, which are read at once after LISTED_AFTER lookups in it."""

    def __init__(self):
        self._asked: Counter = Counter()
        self._known: dict[str, tuple[str, set[str], set[str]]] = {}  # folder -> real path, files, links

    def find(self, path: str) -> str | None:
        """The real path of a file; None if it must be looked up singly."""
        folder, name = os.path.split(path)
        real, files, links = self._known.get(folder) or self._listing(folder)
        if name in links:
            folder, name = os.path.split(os.path.join(real, os.readlink(path)))
            real, files, _ = self._known.get(folder) or self._listing(folder)
        return real + name if name in files else None

    def _listing(self, folder: str) -> tuple[str, set[str], set[str]]:
        self._asked[folder] += 1
        if self._asked[folder] < LISTED_AFTER:
            return "", set(), set()
        self._known[folder] = os.path.join(_real_folder(folder), ""), *_names_in(folder)
        return self._known[folder]


def _names_in(folder: str) -> tuple[set[str], set[str]]:
    files, links = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    links.add(entry.name)
                elif entry.is_file():
                    files.add(entry.name)
    except OSError:  # looking up each file will say why
        pass
    return files, links


_real_folder = lru_cache(maxsize=4096)(os.path.realpath)


def _real(path: str) -> str:
    """As os.path.realpath, which looks at each folder of a path: here a folder is looked at once."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    path = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


def _blobs_of(folder: Path) -> str:
    """The folder that the links in snapshots/COMMIT of the Hub's cache lead to; "" elsewhere."""
    parts = folder.parts
    if "snapshots" not in parts[1:]:
        return ""
    place = len(parts) - 1 - parts[::-1].index("snapshots")
    return os.path.join(*parts[:place], "blobs") + os.sep


def _shown(path: str) -> str:
    path = path if len(path) < 300 else path[:150] + "..." + path[-100:]
    return path if path.isprintable() else ascii(path)


def counted(reasons: Iterable[str]) -> Counter:
    """{reason: how often}. Missing files are one reason, shown with the path of the first of them."""
    counts, shown = Counter(), {}
    for reason in reasons:
        kind = reason.partition(_MISSING)[0] if _MISSING in reason else reason
        counts[shown.setdefault(kind, reason)] += 1
    return counts
