"""Features on the disk, found by what they were computed from. Several runs and ranks may use it at once.

A folder holds the features of one encoder, in files called shards. In a shard the features lie end to end,
then come a table of RECORDs, the number of records and a checksum of the table. A shard is written under a
temporary name and is never changed afterwards.
"""

import contextlib
import hashlib
import mmap
import os
import uuid
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from omni.base.console import say
from omni.base.errors import UserError
from omni.base.machine import release_mapped

SUFFIX = ".features"
SHARD = 64 * 2 ** 20  # bytes of features after which a shard is written
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("rows", "<u4"), ("width", "<u4"),
                   ("frames", "<u4"), ("checksum", "<u4")])
TAIL = 8 + hashlib.sha256().digest_size  # bytes at the end of a shard


class Key(NamedTuple):
    """128 bits of a hash."""

    high: int
    low: int

    @classmethod
    def of(cls, *parts: bytes) -> "Key":
        joined = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        digest = hashlib.blake2b(joined, digest_size=16).digest()
        return cls(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))


def default_folder() -> Path:
    """In the user's cache folder: $XDG_CACHE_HOME, or that of the platform."""
    local, home = os.environ.get("LOCALAPPDATA"), Path.home()
    platform = local or home / "AppData" / "Local" if os.name == "nt" else home / ".cache"
    cache = os.environ.get("XDG_CACHE_HOME") or platform
    return Path(cache) / "micro-omni" / "features"


def shards(root: Path) -> list[tuple[Path, os.stat_result]]:
    """All shards under `root`, the least recently used first."""
    found = []
    for path in root.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another run may have deleted it
            found.append((path, path.stat()))
    return sorted(found, key=lambda pair: pair[1].st_mtime)


class FeatureCache:
    """The features of one encoder: (rows, width) in fp16 by `Key`.

    All encoders' folders under `root` together take at most `limit` bytes: the shards that were used least
    recently are deleted. What this process uses is never deleted by it.
    """

    def __init__(self, root: Path, encoder: str, limit: float):
        self.root, self.folder, self.limit = root, root / encoder, limit
        self._maps: list[mmap.mmap] = []  # the shards' bytes
        self._paths: list[Path] = []
        self._sort(np.empty(0, RECORD), np.empty(0, np.int64))  # records, and the shard of each
        self._used: set[Path] = set()
        self._waiting: dict[Key, tuple[torch.Tensor, int]] = {}  # features that no shard holds yet
        self._waiting_bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise UserError(f"{self.folder}: can't be created ({err.strerror}); set feature_cache_dir to "
                            "another folder, or feature_cache_gb to 0") from None
        self.refresh()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": []}  # else a process that is not forked would get all bytes sent

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._maps = [_mapped(path) for path in self._paths]

    def refresh(self) -> None:
        """Add the shards that other processes wrote. A damaged one is deleted."""
        known = {*self._paths}
        tables = [self._index]
        numbers = [self._shard_of]
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path in known:
                continue
            table, content = _read_table(path)
            if table is None:
                say(f"{path}: damaged, so its features are computed again")
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            tables.append(table)
            numbers.append(np.full(len(table), len(self._paths)))
            self._maps.append(content)
            self._paths.append(path)
        if len(tables) > 1:
            self._sort(np.concatenate(tables), np.concatenate(numbers))

    def _sort(self, index: np.ndarray, shard_of: np.ndarray) -> None:
        """Set the records and the shard of each, sorted for `find`."""
        order = np.argsort(index["high"], kind="stable")
        self._index, self._shard_of = index[order], shard_of[order]
        self._high = np.ascontiguousarray(self._index["high"])  # a search in the records would copy it

    def find(self, key: Key) -> int | None:
        """The number of the record of a feature, until the next `refresh`; None if there is none."""
        place = int(np.searchsorted(self._high, np.uint64(key.high)))
        while place < len(self._high) and self._high[place] == key.high:
            if self._index["low"][place] == key.low:
                return place
            place += 1
        return None

    def intact(self, key: Key) -> bool:
        """Whether a feature is there and has its checksum. A shard with a damaged one is deleted."""
        place = self.find(key)
        if place is None:
            return False
        shard = int(self._shard_of[place])
        path = self._paths[shard]
        if zlib.crc32(self._bytes(place)) == self._index["checksum"][place]:
            if path not in self._used:
                self._used.add(path)
                with contextlib.suppress(OSError):
                    os.utime(path)
            return True
        say(f"{path}: damaged, so its features are computed again")
        kept = self._shard_of != shard
        self._sort(self._index[kept], self._shard_of[kept])
        with contextlib.suppress(OSError):
            path.unlink()
        return False

    def _bytes(self, place: int) -> bytearray:
        record, shard = self._index[place], self._maps[self._shard_of[place]]
        start = int(record["offset"])
        stop = start + 2 * int(record["rows"]) * int(record["width"])
        content = bytearray(memoryview(shard)[start:stop])
        release_mapped(shard, start, stop)
        return content

    def read(self, key: Key) -> torch.Tensor:
        """A feature (rows, width) in fp16. KeyError if it is not there."""
        place = self.find(key)
        if place is None:
            raise KeyError(key)
        record = self._index[place]
        values = np.frombuffer(self._bytes(place), np.float16)
        return torch.from_numpy(values).view(int(record["rows"]), int(record["width"]))

    def size(self, key: Key) -> tuple[int, int]:
        """(bytes, frames) of a feature; `frames` is what `add` got. KeyError if it is not there."""
        place = self.find(key)
        if place is None:
            raise KeyError(key)
        record = self._index[place]
        return 2 * int(record["rows"]) * int(record["width"]), int(record["frames"])

    def add(self, key: Key, feature: torch.Tensor, frames: int = 0) -> None:
        """Keep a feature (rows, width). It can be read after `flush`."""
        if key not in self._waiting and self.find(key) is None:
            self._waiting[key] = feature.to("cpu", torch.float16, copy=True), frames
            self._waiting_bytes += self._waiting[key][0].nbytes
            if self._waiting_bytes >= SHARD:
                self.flush()

    def flush(self) -> None:
        """Write a shard of what was added. UserError if that fails."""
        if not self._waiting:
            return
        records, offset = np.zeros(len(self._waiting), RECORD), 0
        blobs = [feature.contiguous().numpy().tobytes() for feature, _ in self._waiting.values()]
        for record, blob, (key, (feature, frames)) in zip(records, blobs, self._waiting.items(), strict=True):
            record["high"], record["low"], record["offset"] = key.high, key.low, offset
            record["rows"], record["width"], record["frames"] = *feature.shape, frames
            record["checksum"] = zlib.crc32(blob)
            offset += len(blob)
        table = records.tobytes()
        self._make_room(offset + len(table) + TAIL)
        path = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as f:
                f.writelines(blobs)
                f.write(table + len(records).to_bytes(8, "little") + hashlib.sha256(table).digest())
            os.replace(temporary, path)
        except OSError as err:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: can't be written ({err.strerror}); make room, set feature_cache_dir to "
                            "another folder, or feature_cache_gb to 0") from None
        self._waiting, self._waiting_bytes = {}, 0
        self._used.add(path)
        self.refresh()

    def _make_room(self, size: int) -> None:
        """Delete the least recently used shards until `size` more bytes are within the limit."""
        there = shards(self.root)
        total = sum(stat.st_size for _, stat in there)
        for path, stat in there:
            if total + size <= self.limit:
                return
            if path not in self._used:
                with contextlib.suppress(OSError):  # in use on Windows, or deleted by another run
                    path.unlink()
                    total -= stat.st_size


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as f:
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def _read_table(path: Path) -> tuple[np.ndarray | None, mmap.mmap | None]:
    """The records of a shard and its bytes; (None, None) if it is damaged."""
    try:
        content = _mapped(path)
        tail = content[-TAIL:]
        count = int.from_bytes(tail[:8], "little")
        table = content[max(0, len(content) - TAIL - count * RECORD.itemsize):len(content) - TAIL]
        if len(table) != count * RECORD.itemsize or hashlib.sha256(table).digest() != tail[8:]:
            return None, None
        records = np.frombuffer(table, RECORD)
        ends = records["offset"] + 2 * records["rows"].astype(np.uint64) * records["width"]
        if count and int(ends.max()) > len(content) - TAIL - len(table):
            return None, None
        return records, content
    except (OSError, ValueError):
        return None, None
