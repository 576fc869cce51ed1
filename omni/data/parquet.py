"""Bytes inside Parquet files: the columns that hold them, and reading those of one row.

pyarrow is imported when the first such file is read. A process keeps the rows around its last reads, at most
`BATCH` bytes for each of `KEPT` columns, so reading the rows in their order decodes each row group once.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from omni.base.errors import MediaError, UserError

MAGIC = b"PAR1"
BATCH, KEPT = 32 * 2 ** 20, 4
BUFFER = 2 ** 20  # bytes read at a time, instead of a whole column of a row group
SEVERAL = ("list", "large_list", "fixed_size_list")  # pyarrow's types of lists


class Leaf(NamedTuple):
    """A column of single values."""

    number: int  # among the file's columns
    steps: tuple[str, ...]  # from its outermost column: names of a struct's values, "*" for a list's
    holds_bytes: bool


@lru_cache(1)
def library():
    """pyarrow, with the system's memory allocator: its own reserves more than a decoding child may have.

    ImportError if it is not installed.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    return pyarrow


def opened(path: str | Path):
    """A pyarrow ParquetFile. UserError if it can't be read."""
    try:
        return library().parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    except (ValueError, library().ArrowException) as err:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(err).split())[:100]})") from None


def kind(arrow_type) -> str:
    """What a pyarrow type is here: bytes, struct, list, or plain for all others."""
    types = library().types
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return "bytes"
    if types.is_struct(arrow_type):
        return "struct"
    return "list" if any(getattr(types, f"is_{name}")(arrow_type) for name in SEVERAL) else "plain"


def leaves(schema) -> list[Leaf]:
    """The columns of single values in a pyarrow schema, as Parquet numbers them."""
    found, number = [], 0

    def walk(arrow_type, steps: tuple[str, ...]) -> None:
        nonlocal number
        what = kind(arrow_type)
        if what == "struct":
            for field in arrow_type:
                walk(field.type, (*steps, field.name))
        elif what == "list":
            walk(arrow_type.value_type, (*steps, "*"))
        else:
            found.append(Leaf(number, steps, what == "bytes"))
            number += 2 if library().types.is_map(arrow_type) else 1
    for field in schema:
        walk(field.type, (field.name,))
    return found


def read(path: str, row: int, column: int, place: int) -> bytes:
    """The bytes at `place` of a row's values in `column`, both counted from 0. MediaError if there are none.
    """
    try:
        library()
        values = _column(path, column, os.getpid()).values(row)  # a forked process must not share a reader
    except ImportError:
        raise MediaError("reading Parquet needs pyarrow: pip install pyarrow") from None
    except (UserError, IndexError):
        raise MediaError("the Parquet file that holds it has changed") from None
    value = next(islice(values, place, None), None)
    if value is None:
        raise MediaError("no bytes in its row")
    return value


@lru_cache(KEPT)
def _column(path: str, number: int, _process: int) -> "_Column":
    return _Column(path, number)


class _Column:
    """One column of bytes. `values` keeps a batch of rows, and reads on from there for a later row."""

    def __init__(self, path: str, number: int):
        self.file = opened(path)
        self.number, self.path = number, self.file.schema.column(number).path
        groups = self.file.metadata.num_row_groups
        self.starts = [0]  # first row of each row group, and the number of rows
        for group in range(groups):
            self.starts.append(self.starts[-1] + self.file.metadata.row_group(group).num_rows)
        self.group, self.batches, self.batch, self.first = -1, iter(()), None, 0

    def values(self, row: int) -> Iterator[bytes | None]:
        """A row's values in order, None for those without bytes."""
        group = bisect_right(self.starts, row) - 1
        if not 0 <= row < self.starts[-1]:
            raise IndexError(row)
        if group != self.group or row < self.first:
            self.group, self.batch, self.first = group, None, self.starts[group]
            rows = self.file.metadata.row_group(group).num_rows
            size = self.file.metadata.row_group(group).column(self.number).total_uncompressed_size
            self.batches = self.file.iter_batches(batch_size=max(1, min(rows, BATCH * rows // max(size, 1))),
                                                  row_groups=[group], columns=[self.path], use_threads=False)
        while self.batch is None or row >= self.first + self.batch.num_rows:
            self.first += self.batch.num_rows if self.batch is not None else 0
            self.batch = next(self.batches)
        column = self.batch.column(0)
        return _bytes(column[row - self.first].as_py(), column.type)


def _bytes(value, arrow_type) -> Iterator[bytes | None]:
    what = kind(arrow_type)
    if what == "bytes":
        yield value
    elif value is not None and what == "struct":
        for field in arrow_type:
            yield from _bytes(value[field.name], field.type)
    elif value is not None and what == "list":
        for item in value:
            yield from _bytes(item, arrow_type.value_type)
