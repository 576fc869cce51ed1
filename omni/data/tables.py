"""Tables: CSV and TSV with a header, Common Voice's among them, and lists without one, such as LJSpeech's."""

import csv
import os
import re
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from statistics import mean

from omni.base.errors import UserError
from omni.data.keys import role_of
from omni.data.media import is_image, is_medium
from omni.data.texts import Entries, lines_of

_LOOKED_AT = 200  # rows from which a list's columns are told apart
_WIDEST = 8  # lines that a quoted field of a TSV may have


def recognise(path: Path, first: str, folder: Path, asked: set[str]) -> tuple[str, Entries]:
    """(name, entries) of the table at `path`, whose first line is `first`. UserError if it isn't one.

    `asked` are the names of columns that the source's "columns" give.
    """
    delimiter = next((mark for mark in "\t|,;" if mark in first), ",")
    columns = _split(first, delimiter)
    roles = {role_of(column) for column in columns if column}
    if asked.isdisjoint(columns) and not _is_header(columns, roles, folder):
        if len(columns) > 1 and (delimiter == "|" or any(_names_file(c, folder) for c in columns)):
            rows = _without_header(path, delimiter, len(columns), folder)
            return "LJSpeech" if delimiter == "|" else "list", rows
        raise UserError(f"{path}: neither JSON nor a table with a column for the answer (text, sentence, "
                        f"transcript, caption, answer, label): its first line is {first[:60]!r}; \"columns\" "
                        'of the source can say what a column is: {"audio": NAME, "answer": NAME}')
    common_voice = delimiter == "\t" and {"path", "sentence"} <= set(columns)
    name = "Common Voice" if common_voice else "TSV" if delimiter == "\t" else "CSV"
    rows = _csv_rows(path, columns) if delimiter == "," else _plain_rows(path, delimiter, columns)
    return name, _clips(rows) if common_voice else rows


def _is_header(columns: list[str], roles: set[str], folder: Path) -> bool:
    """Whether a first line names columns: at least one that is known, and no file."""
    # With a medium's column alone it is one too: the message then names the columns that could be the answer.
    named = roles & {"words", "answer", "label", "talk", "translation", "image", "audio", "medium"}
    return bool(named) and not any(_names_file(c, folder) for c in columns)


def _names_file(text: str, folder: Path) -> bool:
    return is_medium(re.sub(r"#\d+$", "", text)) or \
        "/" in text and "\0" not in text and len(text) < 250 and os.path.isfile(folder / text)


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line.strip("\r\n")], delimiter=delimiter), [])]
    except csv.Error:
        return [name.strip() for name in line.split(delimiter)]


def _clips(rows: Entries) -> Entries:
    """Common Voice's `path` is a clip with or without its ending, in `clips/` or not."""
    for line, row in rows:
        if isinstance(row, dict):
            row = {"audio": row.get("path", ""), **row}
            del row["path"]
        yield line, row


def _csv_rows(path: Path, columns: list[str]) -> Entries:
    """Rows with commas, in which quotes have a meaning and may hold line ends."""
    reader = csv.reader(lines_of(path), strict=True)
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
        if reader.line_num > line and _swallowed(values, len(columns)):
            raise UserError(f"{path}, line {line}: a quote opened here is closed {reader.line_num - line} "
                            "lines further on, and the lines between look like rows; double or remove it")
        yield line, _row(values, columns)


def _swallowed(values: list[str], count: int) -> bool:
    """Whether a field with line ends holds whole rows, with a file's name as their first value."""
    return any(len(parts := line.split(",")) >= count - 1 and is_medium(parts[0].strip().strip('"'))
               for value in values if "\n" in value for line in value.splitlines()[1:])


def _plain_rows(path: Path, delimiter: str, columns: list[str]) -> Entries:
    """Rows in which a quote is a plain character, except around a whole field whose other quotes are doubled.

    So a stray quote can't swallow rows. A quoted field may have line ends if all of its row is well-formed.
    """
    lines = enumerate(lines_of(path), 1)
    held: list[tuple[int, str]] = []  # lines that were looked at and not used
    header_seen = False
    while held or (held := list(islice(lines, 1))):
        number, text = held.pop(0)
        if not text.strip():
            continue
        if not header_seen:
            header_seen = True
            continue
        values = text.rstrip("\r\n").split(delimiter)
        if '"' in text and (len(values) < len(columns) or values[-1].startswith('"')
                            and _unquoted(values[-1]) == values[-1]):
            held += islice(lines, max(0, _WIDEST - len(held)))
            if len(values) == len(columns) and held and held[0][1].count(delimiter) + 1 == len(columns):
                yield number, _row([_unquoted(value) for value in values], columns)  # the next line is a row
                continue
            for used in range(1, len(held) + 1):
                text += held[used - 1][1]
                fields = _quoted(text.rstrip("\r\n"), delimiter)
                if fields is not None and len(fields) == len(columns):
                    values, held = fields, held[used:]
                    break
        elif '"' in text:
            values = [_unquoted(value) for value in values] if len(values) == len(columns) else \
                _quoted(text.rstrip("\r\n"), delimiter) or values
        yield number, _row(values, columns)


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


def _quoted(text: str, delimiter: str) -> list[str] | None:
    """The fields of a row that is well-formed with quotes; None if it isn't."""
    try:
        (fields,) = csv.reader([text], delimiter=delimiter, strict=True)
        return fields
    except (csv.Error, ValueError):
        return None


def _row(values: list[str], columns: list[str]) -> dict | ValueError:
    if len(values) != len(columns):
        return ValueError(f"{len(values)} columns, and the header has {len(columns)}")
    return {name: value.strip() for name, value in zip(columns, values, strict=True)}


def _without_header(path: Path, delimiter: str, count: int, folder: Path) -> Entries:
    """`name|text|normalised text` and the like: the rows show which columns are the file and the text."""
    rows = [line.rstrip("\r\n").split(delimiter) for line in islice(lines_of(path), _LOOKED_AT)
            if line.strip()]
    file, text = _columns_of([row for row in rows if len(row) == count] or rows, folder)
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        values = [value.strip() for value in line.rstrip("\r\n").split(delimiter)]
        if len(values) <= max(file, text[-1] if len(text) < 2 else text[0]):
            yield number, ValueError(f"{len(values)} columns, and the first line has {count}")
            continue
        # LJSpeech's third column is the normalised text, and may be empty.
        used = next((i for i in text if i < len(values) and values[i]), text[0])
        kind = "image" if is_image(values[file].partition("#")[0]) else "audio"
        yield number, {kind: re.sub(r"#\d+$", "", values[file]),  # Flickr8k numbers an image's captions
                       "sentence" if kind == "audio" else "caption": values[used],
                       **{f"column {i + 1}": value for i, value in enumerate(values)
                          if i not in (file, *text)}}


def _columns_of(rows: list[list[str]], folder: Path) -> tuple[int, list[int]]:
    """(the column of the file, those of the text: the preferred first)."""
    count = min(map(len, rows))
    columns = [[row[i].strip() for row in rows] for i in range(count)]
    file = next((i for i in range(count) if any(_names_file(value, folder) for value in columns[i])), 0)
    others = [i for i in range(count) if i != file]
    # The text has the most words; a speaker or a number has one, and often the same.
    texts = [i for i in others if mean(len(value.split()) for value in columns[i]) >= 2] or \
        [max(others, key=lambda i: (mean(len(value) > 0 for value in columns[i]), len({*columns[i]}), -i),
             default=file)]
    main = texts[0]
    alike = [i for i in others if i > main and _alike(columns[main], columns[i])] if count < 4 else []
    return file, sorted([main, *alike], reverse=True)


def _alike(texts: list[str], others: list[str]) -> bool:
    """Whether one column is another spelling of the other, or is empty."""
    both = [(a.lower(), b.lower()) for a, b in zip(texts, others, strict=True) if a and b]
    close = [SequenceMatcher(None, a[:200], b[:200]).ratio() > 0.5 or not {*a.split()}.isdisjoint(b.split())
             for a, b in both[:20]]
    return mean(close) >= 0.5 if close else not any(others)
