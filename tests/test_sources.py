"""Large sources as they are published: compressed lines, folders of shards, WebDataset by its index."""

import gzip
import json

import pytest
from published import put

from omni.data import manifest
from omni.errors import UserError

LINES = "".join(json.dumps({"question": f"q{i}", "answer": "é"}) + "\n" for i in range(3))


def test_compressed_lines_tables_and_json(tmp_path):
    entries = [json.loads(line) for line in LINES.splitlines()]
    for name, text in (("m.jsonl.gz", LINES), ("m.gz", LINES), ("m.json.gz", json.dumps(entries, indent=1)),
                       ("m.csv.gz", "question,answer\nq0,é\nq1,é\nq2,é\n")):
        put(tmp_path, {name: gzip.compress(text.encode())})
        assert [s.turns for s in manifest.read(str(tmp_path / name)).samples] == [
            ("user", f"q{i}", "assistant", "é") for i in range(3)], name


def test_a_damaged_compressed_file_is_one_line(tmp_path):
    content = bytearray(gzip.compress(LINES.encode() * 9000))
    put(tmp_path, {"cut.jsonl.gz": bytes(content[:-99]), "tar.gz": gzip.compress(b"\0" * 257 + b"ustar"),
                   "data.jsonl.gz": gzip.compress(b'{"image": "data:image/png;base64,' + b"A" * 99
                                                  + b'", "question": "q", "answer": "a"}')})
    content[len(content) // 2] ^= 255
    put(tmp_path, {"bad.jsonl.gz": bytes(content)})
    for name, words in (("cut", "damaged or cut short"), ("bad", "damaged or cut short|not UTF-8")):
        with pytest.raises(UserError, match=words):
            manifest.read(str(tmp_path / f"{name}.jsonl.gz"))
    with pytest.raises(UserError, match="compressed tar"):
        manifest.read(str(tmp_path / "tar.gz"))
    ((_, reason),) = manifest.read(str(tmp_path / "data.jsonl.gz")).skipped
    assert "compressed file" in reason


def test_a_compressed_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("omni.data.texts.MAX_LINE", 1000)
    put(tmp_path, {"m.jsonl.gz": gzip.compress(LINES.encode() + b" " * 5000)})
    with pytest.raises(UserError, match="line 4: longer than 1000 characters"):
        manifest.read(str(tmp_path / "m.jsonl.gz"))
