"""What a file or a folder is, told by its content: each format's entries, one by one.

A format yields `(number, entry)` for `omni.talks.convert`: a file's lines, a table's rows, a folder's
pictures. Published forms are read as they are; nothing is converted on the disk.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from omni.data import conversations
from omni.data.media import Piece, is_image
from omni.data.webdataset import shards
from omni.errors import UserError

MAX_LINE = 64_000_000  # characters of one entry, pictures in base64 included
# Columns that hold an answer: a table's header names one of them.
KNOWN = {*conversations.ANSWER, *(answer for _, answer, _ in conversations.PAIRS)}
MAX_JSON = 2 ** 31  # bytes of a file that is one JSON list, which is parsed as a whole


@dataclass(frozen=True)
class Format:
    """A source, recognised. Media paths are relative to `folder`; `inline` finds base64 in the file."""

    name: str  # as it is printed
    unit: str  # what the entries' numbers count: line, row, entry, file
    folder: Path
    entries: Iterator[tuple[int, object]]  # an entry that is a ValueError can't be used, for that reason
    inline: Callable[[str, str], Piece] = conversations.no_pieces


def recognise(path: str, question: str = "") -> Format:
    """The format of the file or folder at `path`. UserError if it is none that is known."""
    try:
        if Path(path).is_dir():
            return _folder(Path(path), question)
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
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
        raise UserError(f"{path}: can't open this folder as a source: name the table of it to read: "
                        + ", ".join(tables[:9]))
    kinds = sorted(p for p in path.iterdir() if p.is_dir())
    if any(is_image(p.name) for kind in kinds for p in islice(kind.rglob("*"), 1000)):
        if not question:
            raise UserError(f'{path}: a folder of pictures by kind needs a "question" in its source, such as '
                            '"What is in the picture?"')
        return Format("image folder", "picture", root, _image_folder(root, question))
    raise UserError(f"{path}: can't open this folder as a source: it holds none of metadata.csv (LJSpeech), "
                    "*.trans.txt (LibriSpeech), *.tar (WebDataset), KIND/*.jpg (pictures by kind)")


def _image_folder(root: Path, question: str) -> Iterator[tuple[int, object]]:
    """`kind/*.jpg`: the answer is the folder's name. What is hidden is not looked at."""
    number = 0
    for picture in sorted(root.rglob("*")):
        inside = picture.relative_to(root)
        if is_image(picture.name) and not any(part.startswith(".") for part in inside.parts):
            number += 1
            kind = inside.parts[0].replace("_", " ")
            yield number, {"image": str(inside), "question": question, "answer": kind} \
                if len(inside.parts) > 1 else ValueError("not in a folder that names its kind")


def _librispeech(root: Path) -> Iterator[tuple[int, object]]:
    """`speaker/chapter/*.trans.txt`: lines of a clip's name and its words, the clip beside them."""
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
    inline = Base64Finder(path)
    if text.startswith("[") and not lines:
        return Format("JSON", "entry", folder, _json_list(path), inline)
    if text.startswith("{") or lines or not text:
        return Format("JSON lines", "line", folder, _json_lines(path), inline)
    first = text.splitlines()[0]
    if "|" in first and "\t" not in first and not KNOWN & {name.strip() for name in re.split("[|,;]", first)}:
        return Format("LJSpeech", "line", folder, _ljspeech(path))
    return _table(path, first, folder)


def _table(path: Path, first: str, folder: Path) -> Format:
    """CSV or TSV with a header. Common Voice's tables lie beside `clips/` and are written without quotes."""
    comma = next((mark for mark in "\t,;|" if mark in first), ",")
    columns = [name.strip() for name in next(csv.reader([first], delimiter=comma))]
    voice = comma == "\t" and {"path", "sentence"} <= set(columns) and (folder / "clips").is_dir()
    if not KNOWN & set(columns):
        raise UserError(f"{path}: neither JSON nor a table with a column for the answer "
                        f"({', '.join(conversations.ANSWER)}): its first line is {first[:60]!r}")
    name = "Common Voice" if voice else "TSV" if comma == "\t" else "CSV"
    return Format(name, "line", folder, _rows(path, comma, columns, voice))


def _rows(path: Path, comma: str, columns: list[str], voice: bool) -> Iterator[tuple[int, object]]:
    quoting = csv.QUOTE_NONE if voice else csv.QUOTE_MINIMAL
    reader = csv.reader(_lines(path), delimiter=comma, quoting=quoting, strict=True)
    header = False  # whether it was passed
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            if reader.line_num > line or not header:  # it may have swallowed any number of samples
                raise UserError(f"{path}, line {line}: a quote opened here is not closed ({err})") from None
            yield line, ValueError(f"not a readable row ({err})")
            continue
        if not header or not values:
            header = header or bool("".join(values).strip())
            continue
        if len(values) != len(columns):
            yield line, ValueError(f"{len(values)} columns, and the header has {len(columns)}")
            continue
        row = {name: value.strip() for name, value in zip(columns, values, strict=True)}
        if voice:
            row = {"audio": f"clips/{row['path']}", "sentence": row["sentence"]}
        yield line, row


def _ljspeech(path: Path) -> Iterator[tuple[int, object]]:
    """`name|words as written|words as said`, without header or quotes; the clips are in `wavs/`."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            name, _, words = line.rstrip("\n").partition("|")
            yield number, {"audio": f"wavs/{name}.wav", "sentence": words.rpartition("|")[2].strip()}


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    decode = json.JSONDecoder().raw_decode  # without what json.loads does before and after: half of its time
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
        raise UserError(f"{path}: larger than {MAX_JSON >> 30} GB; write it as JSON lines, one entry a line")
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
    """The lines of a UTF-8 text, as they end in the file: a table's quoted fields may hold some."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            yield from f
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None


class Base64Finder:
    """Where a base64 text stands in a JSON file, so that its medium is read from there whenever it is needed.

    Entries come in the order of the file, so the search goes on from where the last one was found.
    """

    def __init__(self, path: Path):
        self.path, self.content, self.next = path.resolve(), None, 0

    def __call__(self, payload: str, name: str) -> Piece:
        if self.content is None:
            self.content = self.path.read_bytes()
        wanted = payload.encode()
        place = self.content.find(wanted, self.next) if payload else -1
        if place < 0:
            raise ValueError("a data: URL that is not base64, or written with escapes")
        self.next = place + len(wanted)
        return Piece.at(self.path, place, len(wanted), name, in_base64=True)
