"""Finds the files that a source names in its folder, also where published names leave out a part."""

import os
from pathlib import Path

from omni.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Piece, is_audio, is_image

# Published tables name a file without its folder or its ending (Common Voice, LJSpeech, VQA).
_FOLDERS = {"images": ("images", "image", "imgs", "img", "pictures", "photos", "data", "media", "train",
                       "val", "test"),
            "audios": ("clips", "wavs", "wav", "audio", "audios", "data", "media", "train", "dev", "test")}
MAX_FOLDERS = 20  # in which a file is looked for
_ENDINGS = {"images": IMAGE_SUFFIXES, "audios": AUDIO_SUFFIXES}


class MediaPaths:
    """Absolute paths of media. A path may not leave the source's folder unless `allow_outside`."""

    def __init__(self, folder: Path, allow_outside: bool):
        self.folder, self.allow_outside = str(folder), allow_outside  # an absolute path without links
        self._inside = self.folder.rstrip(os.sep) + os.sep
        self._below: dict[str, list[str]] = {}  # kind -> folders in which to look
        self._last: dict[str, tuple[str, str]] = {}  # kind -> the folder and ending that were found last

    def find(self, names: list, kind: str) -> tuple[str, ...]:
        """The paths of `names`; `kind` is images or audios. ValueError if one can't be used."""
        return tuple([name if isinstance(name, Piece) else self._find(name, kind) for name in names])

    def _find(self, name: str, kind: str) -> str:
        if "://" in name:
            raise ValueError(f'a web address in "{kind}": nothing is fetched, download it first')
        if "\0" in name:
            raise ValueError(f'a file of "{kind}" is missing')
        if kind in self._last:
            before, after = self._last[kind]
            path = os.path.join(self.folder, before, name + after)
            if os.path.isfile(path):
                return self._checked(path, kind)
        path = self._checked(os.path.join(self.folder, name), kind)
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
        raise ValueError(f'a file of "{kind}" is missing')

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

    def _checked(self, path: str, kind: str) -> str:
        path = os.path.realpath(path)
        if not self.allow_outside and not path.startswith(self._inside) and path != self.folder:
            raise ValueError(f'"{kind}" leaves the manifest\'s folder (allow_outside_paths permits it)')
        return path
