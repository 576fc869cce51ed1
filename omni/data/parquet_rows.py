"""Parquet files, such as Hugging Face's: the rows as entries, and bytes in them as pieces of the file.

A column of bytes is not read if the file's statistics say which rows have some.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from omni.base.errors import MediaError, UserError
from omni.data import parquet
from omni.data.media import Piece, is_medium
from omni.data.parquet import Leaf, kind

ROWS = 500  # read at a time
# What else a struct may hold that is one medium.
_BESIDE = {"path", "name", "file_name", "filename", "format", "sampling_rate", "mime_type"}
_BYTES = {"bytes", "data", "content"}
_STARTS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif",
           b"MM\0*": ".tif", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff\xfb": ".mp3",
           b"\xff\xf3": ".mp3"}
ALL, NONE, SOME = "all", "none", "some"  # of the places for bytes in a row group that have them


def entries(path: Path) -> Iterator[tuple[int, dict]]:
    """(number from 1, entry) of each row. UserError if a part of the file can't be read."""
    file = parquet.opened(path)
    reader, number = _Rows(path, file), 0
    for group in range(file.metadata.num_row_groups):
        try:
            for entry in reader.group(group, number):
                number += 1
                yield number, entry
        except (OSError, ValueError, parquet.library().ArrowException) as err:
            reason = " ".join(str(err).split())[:100]
            raise UserError(f"{path}: can't be read after row {number} ({reason})") from None


class _Rows:
    """Makes the entries of one file."""

    def __init__(self, path: Path, file):
        self.path, self.file, self.resolved = path, file, str(path.resolve())
        self.all_leaves = parquet.leaves(file.schema_arrow)
        self.leaves = {leaf.steps: leaf for leaf in self.all_leaves if leaf.holds_bytes}
        self.nested = {steps[0] for steps in self.leaves}  # columns with bytes somewhere in them
        self.columns = [file.schema.column(i).path for i in range(file.metadata.num_columns)]
        # pandas keeps the numbers of its rows as a column.
        self.plain = [i for i, name in enumerate(self.columns) if not name.startswith("__index_level_")
                      and i not in {leaf.number for leaf in self.leaves.values()}]
        self.labels = _labels(file.schema_arrow.metadata)
        self.types = {field.name: field.type for field in file.schema_arrow}
        self.endings: dict[Leaf, str] = {}
        self.row, self.places, self.have, self.sizes = 0, {}, {}, {}

    def group(self, group: int, first: int) -> Iterator[dict]:
        """The entries of a row group, the first of which is row `first` of the file."""
        meta = self.file.metadata.row_group(group)
        size = 0
        for leaf in self.leaves.values():
            column = meta.column(leaf.number)
            self.have[leaf] = self._have(leaf, group, column)
            self.sizes[leaf] = column.total_uncompressed_size // max(1, column.num_values)
            size += column.total_uncompressed_size if self.have[leaf] == SOME else 0
        wanted = [*self.plain, *(leaf.number for leaf, have in self.have.items() if have == SOME)]
        if wanted:
            rows = max(1, min(ROWS, parquet.BATCH * meta.num_rows // max(1, size)))
            batches = self.file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False,
                                             columns=[self.columns[i] for i in sorted(wanted)])
            values = (value for batch in batches for value in batch.to_pylist())
        else:
            values = ({} for _ in range(meta.num_rows))
        for self.row, value in enumerate(values, first):
            yield self._entry(value)

    def _entry(self, value: dict) -> dict:
        self.places = dict.fromkeys(self.leaves.values(), 0)
        entry = {}
        for name, arrow_type in self.types.items():
            if name in self.nested:
                entry[name] = self._filled(value.get(name), arrow_type, (name,))
            elif name in self.labels and isinstance(value.get(name), int):
                names = self.labels[name]
                entry[name] = names[value[name]] if 0 <= value[name] < len(names) else None
            elif name in value:
                entry[name] = value[name]
        return entry

    def _filled(self, value, arrow_type, steps: tuple[str, ...], beside: dict | None = None):
        """A value with the pieces that its bytes are."""
        what = kind(arrow_type)
        if what == "bytes":
            leaf = self.leaves[steps]
            place = self.places[leaf]
            self.places[leaf] += 1
            have = value is not None if self.have[leaf] == SOME else self.have[leaf] == ALL
            return self._piece(leaf, place, beside or {}) if have else None
        if value is None or what == "plain":
            return value
        if what == "list":
            return [self._filled(item, arrow_type.value_type, (*steps, "*")) for item in value]
        filled = {field.name: self._filled(value.get(field.name), field.type, (*steps, field.name), value)
                  for field in arrow_type}
        pieces = [name for name, item in filled.items() if isinstance(item, Piece)]
        whole = len(pieces) == 1 and pieces[0] in _BYTES and filled.keys() - {*pieces} <= _BESIDE
        return filled[pieces[0]] if whole else filled

    def _piece(self, leaf: Leaf, place: int, beside: dict) -> Piece:
        """The piece's name is what the row calls the file, or else that of the row."""
        name = next((beside[key] for key in ("path", "file_name", "filename", "name")
                     if isinstance(beside.get(key), str) and beside[key]), "")
        name = name.replace("\\", "/").rsplit("/", 1)[-1] or f"{self.path.stem}-{self.row + 1}-{place + 1}"
        if not is_medium(name):
            name += self._ending(leaf, place)
        return Piece.in_row(self.resolved, self.row, self.sizes[leaf], leaf.number, place, name)

    def _ending(self, leaf: Leaf, place: int) -> str:
        """The ending of the column's files, as the first of them begins."""
        if leaf not in self.endings:
            try:
                start = parquet.read(self.resolved, self.row, leaf.number, place)[:12]
            except MediaError:
                return ""
            form = {b"WEBP": ".webp", b"WAVE": ".wav"}.get(start[8:12], "") if start[:4] == b"RIFF" else \
                next((ending for head, ending in _STARTS.items() if start.startswith(head)), "")
            self.endings[leaf] = form
        return self.endings[leaf]

    def _have(self, leaf: Leaf, group: int, column) -> str:
        """Which places for bytes have some: NONE, ALL, or SOME if only the bytes themselves can tell."""
        statistics = column.statistics
        if statistics is None or not statistics.has_null_count:
            return SOME
        count = column.num_values - statistics.null_count
        if count == 0:
            return NONE
        if len(leaf.steps) == 1:
            return ALL if statistics.null_count == 0 else SOME
        # A struct's other values tell how many structs there are.
        near = next((other.number for other in self.all_leaves
                     if other.steps[:-1] == leaf.steps[:-1] and not other.holds_bytes), None)
        if near is None:
            return SOME
        table = self.file.read_row_group(group, columns=[self.columns[near]], use_threads=False)
        return ALL if sum(_structs(chunk, leaf.steps[1:-1]) for chunk in table.column(0).chunks) == count \
            else SOME


def _structs(array, steps: tuple[str, ...]) -> int:
    """How many structs that are not null an array holds at the end of `steps`."""
    for step in steps:
        array = array.flatten() if step == "*" else parquet.library().compute.struct_field(array, step)
    return len(array) - array.null_count


def _labels(metadata: dict | None) -> dict[str, list[str]]:
    """{column: the names of its classes}, as Hugging Face's `ClassLabel` has them."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: feature["names"] for name, feature in features.items()
                 if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: [label.replace("_", " ") for label in labels] for name, labels in found.items()
            if isinstance(labels, list) and all(isinstance(label, str) for label in labels)}
