"""Recognises the format of a file or a folder by its content, and reads its entries one by one.

A format yields `(number, entry)` for `omni.data.conversations`: the lines of a file, the rows of a table, the
images of a folder. Published formats are read as they are; nothing is converted on the disk.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omni.data import folders, json_files, tables
from omni.data.json_files import Base64Finder
from omni.data.media import Piece
from omni.data.media_values import no_base64
from omni.data.webdataset import shards
from omni.errors import UserError

TABLES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Format:
    """A recognised source. Media paths are relative to `folder`."""

    name: str  # as it is printed
    unit: str  # what the entries' numbers count: line, entry, sample, image
    folder: Path
    entries: Iterator[tuple[int, object]]  # a ValueError in place of an entry that can't be read
    find_base64: Callable[[str, str], Piece] = no_base64  # (base64 text, name) -> its piece
    notes: Counter = field(default_factory=Counter)  # what was left out -> how often, as it is read


def recognise(path: str, question: str = "", asked: Collection[str] = ()) -> Format:
    """The format of the file or folder at `path`. UserError if it can't be read or isn't a known format.

    `question` is asked about each image of an image folder; `asked` are the keys that "columns" name.
    """
    try:
        if Path(path).is_dir():
            return _folder(Path(path), question, asked)
        if Path(path).exists() and not Path(path).is_file():  # opening a pipe would block
            raise OSError(0, "not a regular file")
        with open(path, "rb") as f:
            head = f.read(65_536)
        if head[257:262] == b"ustar" or path.endswith(".tar"):
            return _shards("WebDataset shard", Path(path).resolve().parent, [Path(path)])
        if kaldi := folders.kaldi_files(Path(path)):
            return Format("Kaldi", "line", kaldi[0].resolve().parent, folders.kaldi(*kaldi))
        return _text(Path(path), head, asked)
    except OSError as err:
        raise UserError(f"{path}: can't open this manifest ({err.strerror}); "
                        "data_mix or data_dir names it") from None


def _shards(name: str, folder: Path, paths: list[Path]) -> Format:
    notes: Counter = Counter()
    return Format(name, "sample", folder, shards(paths, notes), notes=notes)


def _folder(path: Path, question: str, asked: Collection[str]) -> Format:
    root = path.resolve()
    found = [path / name for name in ("metadata.csv", "metadata.jsonl", "metadata.tsv")
             if (path / name).is_file()]
    if found:
        return recognise(str(found[0]), question, asked)
    if kaldi := folders.kaldi_files(path):
        return Format("Kaldi", "line", root, folders.kaldi(*kaldi))
    if tars := sorted(p for p in path.glob("*.tar") if not p.name.startswith(".")):
        return _shards(f"WebDataset, {len(tars)} shards", root, tars)
    files = folders.files_in(root)
    if any(name.endswith(".trans.txt") for name in files):
        return Format("LibriSpeech folder", "line", root, folders.librispeech(root))
    groups = folders.pairs(files)
    if groups is not None:
        return Format("folder of pairs", "file", root, folders.paired(root, groups))
    if named := [name for name in files if "/" not in name and name.lower().endswith(TABLES)]:
        raise UserError(f"{path}: can't open this folder as a source: name the table to read: "
                        + ", ".join(named[:9]))
    if any(folders.is_image(name) or folders.is_audio(name) for name in files):
        name, entries = folders.class_folders(path, files, question)
        return Format(name, "image" if name.startswith("image") else "clip", root, entries)
    raise UserError(f"{path}: can't open this folder as a source: it holds none of metadata.csv (LJSpeech), "
                    "*.trans.txt (LibriSpeech), wav.scp and text (Kaldi), *.tar (WebDataset), X.jpg and "
                    "X.txt or X.wav and X.txt, CLASS/*.jpg or CLASS/*.wav")


def _text(path: Path, head: bytes, asked: Collection[str]) -> Format:
    folder = path.resolve().parent
    try:
        text = head.decode("utf-8-sig", "ignore" if len(head) == 65_536 else "strict").lstrip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    if text.startswith(("[", "{")) or path.suffix.lower() in (".jsonl", ".ndjson") or not text:
        name, unit, folder, entries = json_files.recognise(path, folder)
        return Format(name, unit, folder, entries, Base64Finder(path))
    name, entries = tables.recognise(path, text.splitlines()[0], folder, {*asked})
    return Format(name, "line", folder, entries)
