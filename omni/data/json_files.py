"""JSON files: one entry a line, a list, or an object that holds the entries, such as COCO's and VQAv2's."""

import hashlib
import json
import mmap
import os
import re
from difflib import SequenceMatcher
from pathlib import Path

from omni.base.errors import UserError
from omni.data import texts
from omni.data.keys import role_of
from omni.data.media import Piece, is_image, is_medium
from omni.data.texts import MAX_LINE, Entries, lines_of

MAX_JSON = 2 ** 31  # bytes of a file that is one JSON value, since it is parsed as a whole
# A base64 text in a JSON file: a whole string or the end of a data: URL. Texts under 16 characters hold no
# medium, and indexing all short strings would be slow.
_BASE64 = re.compile(rb'[",]([A-Za-z0-9+/]{16,}+={0,2})"')
_DECODE = json.JSONDecoder().raw_decode  # takes half of the time of json.loads


def recognise(path: Path, folder: Path) -> tuple[str, str, Path, Entries]:
    """(name, unit, folder of the media, entries) of a JSON file. UserError if it can't be read."""
    lines = (line.strip() for line in lines_of(path))
    first = next((line for line in lines if line), "")
    several = any(lines)
    in_lines = texts.suffix(path) in (".jsonl", ".ndjson")
    one_a_line = "JSON lines", "line", folder, _json_lines(path)
    value = _entry(first)
    if isinstance(value, ValueError):  # a broken line, or a value of several lines
        if not first.startswith(("[", "{")) or several and len(first) > MAX_LINE:
            return one_a_line
    elif several or isinstance(value, dict) and _is_entry(value) or not isinstance(value, dict | list) or (
            in_lines and isinstance(value, list) and not (value and all(isinstance(v, dict) for v in value))):
        return one_a_line
    if path.stat().st_size > MAX_JSON:
        raise UserError(f"{path}: larger than {MAX_JSON >> 30} GB; write one entry per line, as JSON lines")
    whole = _whole(path, strict=not in_lines)
    if isinstance(whole, list):
        return "JSON", "entry", folder, enumerate(whole, 1)
    return _contained(path, folder, whole) if isinstance(whole, dict) else one_a_line


def _json_lines(path: Path) -> Entries:
    for number, line in enumerate(lines_of(path), 1):
        line = line.strip()
        if not line:
            continue
        try:  # as _entry does, without a call for each line
            entry, end = _DECODE(line)
        except (ValueError, RecursionError):
            entry, end = None, -1
        yield number, entry if end == len(line) <= MAX_LINE else _entry(line)


def _entry(line: str):
    if len(line) > MAX_LINE:
        return ValueError(f"longer than {MAX_LINE} characters")
    try:
        entry, end = _DECODE(line)
    except (ValueError, RecursionError):
        return ValueError("not valid JSON")
    return entry if end == len(line) else ValueError("not valid JSON")


def _whole(path: Path, strict: bool):
    """The value of the file, or the list of its values if there are several; None if it's not valid JSON.

    With `strict` a UserError instead of None.
    """
    text = texts.whole(path, MAX_JSON).strip()
    values, place = [], 0
    try:
        while place < len(text):
            value, place = _DECODE(text, place)
            values.append(value)
            place = len(text) - len(text[place:].lstrip()) if place < len(text) else place
    except json.JSONDecodeError as err:
        if not strict:
            return None
        place = f"{path}, line {err.lineno}, column {err.colno}"
        raise UserError(f"{place}: not valid JSON ({err.msg})") from None
    except (ValueError, RecursionError) as err:
        if not strict:
            return None
        raise UserError(f"{path}: not valid JSON ({type(err).__name__})") from None
    return values[0] if len(values) == 1 else values


def _is_entry(value: dict) -> bool:
    """Whether an object alone in its file is one sample: its keys say so, and it holds no list of samples."""
    if {"images", "annotations"} <= value.keys() or _columnar(value):
        return False
    lists = {key for key, items in value.items() if isinstance(items, list) and items
             and isinstance(items[0], dict)}
    return any(role_of(key) == "talk" or key not in lists and
               role_of(key) in ("question", "answer", "words", "image", "audio", "medium", "label")
               for key in value)


def _contained(path: Path, folder: Path, value: dict) -> tuple[str, str, Path, Entries]:
    """The entries that an object holds."""
    root = folder.parent if folder.name == "annotations" else folder
    lists = {key: items for key, items in value.items()
             if isinstance(items, list) and items and isinstance(items[0], dict | list)}
    if "images" in lists and "annotations" in lists:
        if "caption" not in lists["annotations"][0]:
            raise UserError(f'{path}: "annotations" without captions, such as those of COCO\'s objects')
        return "COCO captions", "entry", root, _coco(path, root, lists)
    for key in ("questions", "annotations"):
        if key in lists and "question_id" in lists[key][0] and "image_id" in lists[key][0]:
            return "VQAv2", "entry", root, _vqa(path, root, key, lists[key])
    if _is_entry(value):
        return "JSON", "entry", folder, iter([(1, value)])
    if columns := _columnar(value):
        return "JSON columns", "entry", folder, enumerate(columns, 1)
    if len(lists) == 1:
        return "JSON", "entry", folder, enumerate(*lists.values(), 1)
    if len(lists) > 1:
        raise UserError(f"{path}: holds several lists ({', '.join(lists)}); write the one that is meant to "
                        "a file of its own")
    if value and all(isinstance(item, dict) for item in value.values()):
        return "JSON", "entry", folder, enumerate((_keyed(*item) for item in value.items()), 1)
    if value and all(isinstance(item, str) and is_medium(key) for key, item in value.items()):
        captions = [{"path": key, "text": item} for key, item in value.items()]
        return "JSON", "entry", folder, enumerate(captions, 1)
    return "JSON", "entry", folder, iter([(1, value)])


def _keyed(key: str, entry: dict) -> dict:
    """An entry of an object of entries: its key may be the name of its medium."""
    own = any(role_of(name) in ("image", "audio", "medium") for name in entry)
    return {"path": key, **entry} if is_medium(key) and not own else entry


def _columnar(value: dict) -> list[dict] | None:
    """The rows of {"question": [...], "answer": [...]} or of pandas' {"question": {"0": ...}, ...}."""
    columns = [list(column.values()) if isinstance(column, dict) and all(map(str.isdigit, column)) else column
               for column in value.values()]
    if len(columns) < 2 or any(role_of(key) in ("unknown", "talk") for key in value):
        return None
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns) or \
            len(columns[0]) < 2 or any(isinstance(item, list | dict) for column in columns
                                       for item in column):
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _coco(path: Path, root: Path, lists: dict) -> Entries:
    """`annotations` of captions, each for one of the `images`."""
    names = {image["id"]: image["file_name"] for image in lists["images"] if "id" in image
             and "file_name" in image}
    split = path.stem.rpartition("_")[2]  # captions_val2017.json is about the images in val2017/
    before = next((place for place in ("", split, f"images/{split}", "images")
                   for name in list(names.values())[:3] if os.path.isfile(root / place / name)), "")
    for number, item in enumerate(lists["annotations"], 1):
        name = names.get(item.get("image_id"))
        yield number, ValueError("no image of this image_id") if name is None else \
            {"image": os.path.join(before, name), "caption": item.get("caption")}


def _vqa(path: Path, root: Path, key: str, items: list[dict]) -> Entries:
    """The questions of one file with the answers of another beside it, and images by their number."""
    other = "annotations" if key == "questions" else "questions"
    files = sorted((p for p in path.parent.glob(f"*{other}*.json") if p.resolve() != path.resolve()),
                   key=lambda p: -SequenceMatcher(None, p.name, path.name).ratio())
    if not files:
        raise UserError(f"{path}: VQAv2's {key} without its {other}: put *{other}*.json beside it")
    partner = _whole(files[0], strict=True)
    partner = partner.get(other, []) if isinstance(partner, dict) else []
    questions, answers = (items, partner) if key == "questions" else (partner, items)
    answers = {item.get("question_id"): item for item in answers if isinstance(item, dict)}
    images = _numbered_images(root)
    for number, item in enumerate(questions, 1):
        answer, image = answers.get(item.get("question_id")), images.get(item.get("image_id"))
        if answer is None or image is None:
            yield number, ValueError("no answer of this question_id" if answer is None else
                                     "no image with this image_id in its name")
            continue
        given = answer.get("multiple_choice_answer") or [a.get("answer") for a in answer.get("answers", [])]
        yield number, {"image": image, "question": item.get("question"), "answer": given}


def _numbered_images(root: Path) -> dict[int, str]:
    """{the number at the end of an image's name: its path in `root`}."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in filter(is_image, names):
            number = re.search(r"(\d+)\.\w+$", name)
            if number:
                found[int(number[1])] = os.path.relpath(os.path.join(folder, name), root)
    return found


class Base64Finder:
    """Finds a base64 text in a JSON file, so that its medium can be read from the file whenever it's needed.

    The first call indexes all base64 texts of the file in one pass. So a look-up takes the same time wherever
    the text stands, and entries may name their media in any order. Equal texts share one piece.
    """

    def __init__(self, path: Path):
        self.path, self.places = path.resolve(), None  # digest of a base64 text -> its offset in bytes
        self.compressed = texts.is_gzip(path)

    def __call__(self, payload: str, name: str) -> Piece:
        """The piece that holds `payload`. ValueError if the file has no such base64 text."""
        if self.compressed:
            raise ValueError("a data: URL in a compressed file, where it has no place; decompress the file")
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
