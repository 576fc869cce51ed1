"""Recognises the format of a file or a folder by its content, and reads its entries one by one.

A format yields `(number, entry)` for `omni.data.conversations.convert`: the lines of a file, the rows of a
table, the images of a folder. Published formats are read as they are; nothing is converted on the disk.
"""

import csv
import hashlib
import json
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from omni.data import conversations
from omni.data.media import Piece, is_image
from omni.data.webdataset import shards
from omni.errors import UserError

MAX_LINE = 64_000_000  # characters of one entry, base64 included
MAX_JSON = 2 ** 31  # bytes of a file that is one JSON list, since it is parsed as a whole
# Columns that can hold the answer; a table's header must name one of them.
ANSWER_COLUMNS = {*conversations.ANSWER, *(answer for _, answer, _ in conversations.PAIRS)}
# A base64 text in a JSON file: a whole string or the end of a data: URL. Texts under 16 characters hold no
# medium, and indexing all short strings would be slow.
_BASE64 = re.compile(rb'[",]([A-Za-z0-9+/]{16,}+={0,2})"')


@dataclass(frozen=True)
class Format:
    """A recognised source. Media paths are relative to `folder`."""

    name: str  # as it is printed
    unit: str  # what the entries' numbers count: line, entry, sample, image
    folder: Path
    entries: Iterator[tuple[int, object]]  # a ValueError in place of an entry that can't be read
    find_base64: Callable[[str, str], Piece] = conversations.no_base64  # (base64 text, name) -> its piece


def recognise(path: str, question: str = "") -> Format:
    """The format of the file or folder at `path`. UserError if it can't be read or isn't a known format.

    `question` is asked about each image of an image folder.
    """
    try:
        if Path(path).is_dir():
            return _folder(Path(path), question)
        if Path(path).exists() and not Path(path).is_file():  # opening a pipe would block
            raise OSError(0, "not a regular file")
        with open(path, "rb") as f:
            head = f.read(65_536)
        if head[257:262] == b"ustar" or path.endswith(".tar"):
            return Format("WebDataset shard", "sample", Path(path).resolve().parent, shards([Path(path)]))
        return _text(Path(path), head)
    except OSError as err:
        raise UserError(f"{path}: can't open this manifest ({err.strerror}); "
                        "data_mix or data_dir names it") from None


def _folder(path: Path, question: str) -> Format:
    root = path.resolve()
    found = [path / name for name in ("metadata.csv", "metadata.jsonl") if (path / name).is_file()]
    if found:
        return recognise(str(found[0]), question)
    if any(path.rglob("*.trans.txt")):
        return Format("LibriSpeech folder", "line", root, _librispeech(root))
    if tars := sorted(path.glob("*.tar")):
        return Format(f"WebDataset, {len(tars)} shards", "sample", root, shards(tars))
    if tables := sorted(p.name for p in path.glob("*.tsv")):
        raise UserError(f"{path}: can't open this folder as a source: name the table to read: "
                        + ", ".join(tables[:9]))
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    if any(is_image(p.name) for folder in classes for p in islice(folder.rglob("*"), 1000)):
        if not question:
            raise UserError(f'{path}: an image folder needs a "question" in its source, such as '
                            '"What is in the picture?"')
        return Format("image folder", "image", root, _image_folder(root, question))
    raise UserError(f"{path}: can't open this folder as a source: it holds none of metadata.csv (LJSpeech), "
                    "*.trans.txt (LibriSpeech), *.tar (WebDataset), CLASS/*.jpg (image folder)")


def _image_folder(root: Path, question: str) -> Iterator[tuple[int, object]]:
    """`class/*.jpg`: the answer is the folder's name. Hidden files and folders are ignored."""
    number = 0
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if is_image(path.name) and not any(part.startswith(".") for part in relative.parts):
            number += 1
            answer = relative.parts[0].replace("_", " ")
            yield number, {"image": str(relative), "question": question, "answer": answer} \
                if len(relative.parts) > 1 else ValueError("not in the folder of a class")


def _librispeech(root: Path) -> Iterator[tuple[int, object]]:
    """`speaker/chapter/*.trans.txt`: each line is a clip's name and its transcript; its FLAC is beside."""
    number = 0
    for table in sorted(root.rglob("*.trans.txt")):
        for line in _lines(table):
            number += 1
            name, _, words = line.strip().partition(" ")
            if name:
                yield number, {"audio": str((table.parent / f"{name}.flac").relative_to(root)),
                               "sentence": words}


def _text(path: Path, head: bytes) -> Format:
    folder = path.resolve().parent
    try:
        text = head.decode("utf-8-sig", "ignore" if len(head) == 65_536 else "strict").lstrip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    lines = path.suffix in (".jsonl", ".ndjson")
    find_base64 = Base64Finder(path)
    if text.startswith("[") and not lines:
        return Format("JSON", "entry", folder, _json_list(path), find_base64)
    if text.startswith("{") or lines or not text:
        return Format("JSON lines", "line", folder, _json_lines(path), find_base64)
    first = text.splitlines()[0]
    has_header = ANSWER_COLUMNS & {name.strip() for name in re.split("[|,;]", first)}
    if "|" in first and "\t" not in first and not has_header:
        return Format("LJSpeech", "line", folder, _ljspeech(path))
    return _table(path, first, folder)


def _table(path: Path, first: str, folder: Path) -> Format:
    """CSV or TSV with a header line, `first`. Common Voice's are beside `clips/` and don't use quotes."""
    delimiter = next((mark for mark in "\t,;|" if mark in first), ",")
    columns = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    common_voice = delimiter == "\t" and {"path", "sentence"} <= set(columns) and (folder / "clips").is_dir()
    if not ANSWER_COLUMNS & set(columns):
        raise UserError(f"{path}: neither JSON nor a table with a column for the answer "
                        f"({', '.join(conversations.ANSWER)}): its first line is {first[:60]!r}")
    name = "Common Voice" if common_voice else "TSV" if delimiter == "\t" else "CSV"
    return Format(name, "line", folder, _rows(path, delimiter, columns, common_voice))


def _rows(path: Path, delimiter: str, columns: list[str], common_voice: bool) -> Iterator[tuple[int, object]]:
    quoting = csv.QUOTE_NONE if common_voice else csv.QUOTE_MINIMAL
    reader = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    header_seen = False
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            if reader.line_num > line or not header_seen:  # the open quote may swallow any number of samples
                raise UserError(f"{path}, line {line}: a quote opened here is not closed ({err})") from None
            yield line, ValueError(f"not a readable row ({err})")
            continue
        if not header_seen or not values:
            header_seen = header_seen or bool("".join(values).strip())
            continue
        if len(values) != len(columns):
            yield line, ValueError(f"{len(values)} columns, and the header has {len(columns)}")
            continue
        row = {name: value.strip() for name, value in zip(columns, values, strict=True)}
        if common_voice:
            row = {"audio": f"clips/{row['path']}", "sentence": row["sentence"]}
        yield line, row


def _ljspeech(path: Path) -> Iterator[tuple[int, object]]:
    """`name|text|normalised text`, without header or quotes; the clips are in `wavs/`."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            name, _, texts = line.rstrip("\n").partition("|")
            yield number, {"audio": f"wavs/{name}.wav", "sentence": texts.rpartition("|")[2].strip()}


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    decode = json.JSONDecoder().raw_decode  # takes half of the time of json.loads
    for number, line in enumerate(_lines(path), 1):
        line = line.strip()
        if line:
            yield number, _entry(line, decode)


def _entry(line: str, decode):
    if len(line) > MAX_LINE:
        return ValueError(f"longer than {MAX_LINE} characters")
    try:
        entry, end = decode(line)
    except (ValueError, RecursionError):
        return ValueError("not valid JSON")
    return entry if end == len(line) else ValueError("not valid JSON")


def _json_list(path: Path) -> Iterator[tuple[int, object]]:
    if path.stat().st_size > MAX_JSON:
        raise UserError(f"{path}: larger than {MAX_JSON >> 30} GB; write one entry per line, as JSON lines")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as err:
        place = f"{path}, line {err.lineno}, column {err.colno}"
        raise UserError(f"{place}: not valid JSON ({err.msg})") from None
    except (ValueError, RecursionError) as err:
        raise UserError(f"{path}: not valid JSON ({type(err).__name__})") from None
    yield from enumerate(entries, 1)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text. Line ends are not translated: they matter in a table's quoted fields."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            yield from f
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None


class Base64Finder:
    """Finds a base64 text in a JSON file, so that its medium can be read from the file whenever it's needed.

    The first call indexes all base64 texts of the file in one pass. So a look-up takes the same time wherever
    the text stands, and entries may name their media in any order. Equal texts share one piece.
    """

    def __init__(self, path: Path):
        self.path, self.places = path.resolve(), None  # digest of a base64 text -> its offset in bytes

    def __call__(self, payload: str, name: str) -> Piece:
        """The piece that holds `payload`. ValueError if the file has no such base64 text."""
        if self.places is None:
            with open(self.path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self.places = {self._digest(m[1]): m.start(1) for m in _BASE64.finditer(content)}
        encoded = payload.encode(errors="replace")
        place = self.places.get(self._digest(encoded))
        if place is None:
            raise ValueError("a data: URL that is not base64, is too short, or is written with escapes")
        return Piece.at(self.path, place, len(encoded), name, in_base64=True)

    @staticmethod
    def _digest(text: bytes) -> bytes:
        return hashlib.blake2b(text, digest_size=16).digest()
