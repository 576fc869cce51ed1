"""Recognises the format of a file or a folder by its content, and reads its entries one by one.

A format yields `(number, entry)` for `omni.data.conversations`: the lines of a file, the rows of a table, the
images of a folder. Published formats are read as they are; nothing is converted on the disk.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from omni.base.errors import UserError
from omni.base.paths import local
from omni.data import folders, json_files, parquet, parquet_rows, tables, texts, webdataset
from omni.data.folders import TABLES
from omni.data.json_files import Base64Finder
from omni.data.media import Piece, is_audio, is_image
from omni.data.media_values import no_base64
from omni.data.texts import Entries


@dataclass(frozen=True)
class Format:
    """A recognised source. Media paths are relative to `folder`."""

    name: str  # as it is printed
    unit: str  # what the entries' numbers count: line, entry, sample, image
    folder: Path  # absolute, without links
    entries: Entries
    find_base64: Callable[[str, str], Piece] = no_base64  # (base64 text, name) -> its piece


def recognise(path: str, question: str = "", asked: Collection[str] = (), media_dir: str = "") -> Format:
    """The format of the file or folder at `path`. UserError if it can't be read or isn't a known format.

    `question` is asked about each image of an image folder; `asked` are the keys that "columns" name.
    Media are in `media_dir`, or else beside the file: where it is a link, beside the link.
    """
    try:
        if Path(path).is_dir():
            return _folder(Path(path), question, asked, media_dir)
        if Path(path).exists() and not Path(path).is_file():  # opening a pipe would block
            raise OSError(0, "not a regular file")
        head = texts.head(Path(path), 65_536)
        if head[:4] == parquet.MAGIC:
            folder = _media_folder(Path(path), media_dir)
            return Format("Parquet", "row", folder, parquet_rows.entries(Path(path)))
        if head[257:262] == b"ustar" and texts.is_gzip(Path(path)):
            raise UserError(f"{path}: a compressed tar file; decompress it first, because media are read "
                            "from inside it")
        if head[257:262] == b"ustar" or path.endswith(".tar"):
            return _shards("WebDataset shard", _media_folder(Path(path), media_dir), [Path(path)])
        if kaldi := folders.kaldi_files(Path(path)):
            return Format("Kaldi", "line", _media_folder(kaldi[0], media_dir), folders.kaldi(*kaldi))
        return _text(Path(path), head, asked, media_dir)
    except OSError as err:
        raise UserError(f"{path}: can't open this manifest ({err.strerror}); "
                        "data_mix or data_dir names it") from None


def _media_folder(path: Path, media_dir: str) -> Path:
    folder = Path(local(media_dir)) if media_dir else path.parent
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; "media_dir" of a source names it')
    return folder.resolve()


def _shards(name: str, folder: Path, paths: list[Path]) -> Format:
    return Format(name, "sample", folder, webdataset.entries(paths))


def _folder(path: Path, question: str, asked: Collection[str], media_dir: str) -> Format:
    root = path.resolve()
    found = [path / f"metadata.{end}" for end in ("csv", "jsonl", "parquet", "tsv")
             if (path / f"metadata.{end}").is_file()]
    if found:
        return recognise(str(found[0]), question, asked, media_dir)
    if kaldi := folders.kaldi_files(path):
        return Format("Kaldi", "line", _media_folder(kaldi[0], media_dir), folders.kaldi(*kaldi))
    if media_dir:
        raise UserError(f'{path}: "media_dir" is for tables and JSON files; this folder holds its '
                        "media itself")
    if tars := sorted(p for p in path.glob("*.tar") if not p.name.startswith(".")):
        return _shards(f"WebDataset, {len(tars)} shards", root, tars)
    files = folders.files_in(root)
    if any(name.endswith(".trans.txt") for name in files):
        return Format("LibriSpeech folder", "line", root, folders.librispeech(root))
    groups = folders.pairs(files)
    if groups is not None:
        return Format("folder of pairs", "file", root, folders.paired(root, groups))
    if named := [name for name in files if "/" not in name
                 and name.lower().removesuffix(".gz").endswith(TABLES)]:
        raise UserError(f"{path}: can't open this folder as a source: name the table to read: "
                        + ", ".join(named[:9]))
    if any(is_image(name) or is_audio(name) for name in files):
        name, entries = folders.class_folders(path, files, question)
        return Format(name, "image" if name.startswith("image") else "clip", root, entries)
    raise UserError(f"{path}: can't open this folder as a source: it holds none of metadata.csv (LJSpeech), "
                    "*.trans.txt (LibriSpeech), wav.scp and text (Kaldi), *.tar (WebDataset), X.jpg and "
                    "X.txt or X.wav and X.txt, CLASS/*.jpg or CLASS/*.wav, *.parquet or other shards")


def _text(path: Path, head: bytes, asked: Collection[str], media_dir: str) -> Format:
    folder = _media_folder(path, media_dir)
    try:
        text = head.decode("utf-8-sig", "ignore" if len(head) == 65_536 else "strict").lstrip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    if text.startswith(("[", "{")) or texts.suffix(path) in (".jsonl", ".ndjson") or not text:
        name, unit, folder, entries = json_files.recognise(path, folder)
        return Format(name, unit, folder, entries, Base64Finder(path))
    name, entries = tables.recognise(path, text.splitlines()[0], folder, {*asked})
    return Format(name, "line", folder, entries)
