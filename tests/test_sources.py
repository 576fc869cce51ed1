"""Large sources as they are published: compressed lines, folders of shards, WebDataset by its index."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import put

from omni.base.errors import UserError
from omni.data import manifest, mixture

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


def test_a_folder_of_shards_is_one_source_and_several_sets_are_named(tmp_path):
    def lines(start):
        return "".join(json.dumps({"question": f"q{start + i}", "answer": "a"}) + "\n" for i in range(2))
    put(tmp_path, {"a/part-10.jsonl": lines(2), "a/part-2.jsonl": lines(4), "a/README.md": "x",
                   "a/.x.json": "", "z/c_0.jsonl.gz": gzip.compress(lines(0).encode()),
                   "z/c_1.jsonl.gz": gzip.compress(lines(2).encode()),
                   "b/train.jsonl": lines(0), "b/test.jsonl": lines(0)})
    assert [s.turns[1] for s in manifest.read(str(tmp_path / "a")).samples] == ["q2", "q3", "q4", "q5"]
    assert len(manifest.read(str(tmp_path / "z")).samples) == 4
    with pytest.raises(UserError, match="name the table to read: test.jsonl, train.jsonl"):
        manifest.read(str(tmp_path / "b"))
    for i, name in enumerate(("train-00000-of-00002-0123456789abcdef",
                              "train-00001-of-00002-fedcba9876543210")):
        table = pa.table({"question": [f"q{i}"], "answer": ["a"]})
        put(tmp_path, {f"hf/data/{name}.parquet": b"", "hf/dataset_infos.json": "{}"})
        pq.write_table(table, tmp_path / f"hf/data/{name}.parquet")
    source = manifest.read(str(tmp_path / "hf"))
    assert [s.turns[1] for s in source.samples] == ["q0", "q1"] and source.kind.startswith("Parquet, 2 files")
    pq.write_table(table, tmp_path / "hf/data/test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"several sets .*data/test-\*.parquet, .*data/train-\*.parquet"):
        manifest.read(str(tmp_path / "hf"))
    assert len(manifest.read(str(tmp_path / "hf/data/train-*.parquet")).samples) == 2


def test_a_large_shard_is_known_by_its_size_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "LARGE", 100)
    monkeypatch.setattr(mixture, "END", 10)
    prints = []
    for content in (b"x" * 200, b"x" * 199 + b"y", b"x" * 201, b"y" + b"x" * 199):
        put(tmp_path, {"a.tar": content})
        prints.append(mixture._fingerprint([str(tmp_path / "a.tar")]))
    assert len({*prints}) == 3 and prints[3] == prints[0]  # only the end is read
