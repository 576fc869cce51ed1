"""Parquet as Hugging Face writes it: structs of bytes and path, lists and messages of them, plain columns."""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import clip, picture
from test_run import assert_same_end, train

from omni.base.errors import MediaError, UserError
from omni.data import audio, image, manifest, media, parquet

HF = {"bytes": pa.binary(), "path": pa.string()}
RED, BLUE, WAV = picture(), picture("blue", "JPEG"), clip()


def write(path, columns: dict, **options) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def struct(content: bytes | None, name: str | None = None) -> dict:
    return {"bytes": content, "path": name}


def content(piece: str) -> bytes:
    return media.source(piece).read()


def read(path: str, **options):
    source = manifest.read(path, **options)
    assert not source.skipped and not source.unread, (source.skipped, source.unread)
    return source.samples


def test_images_and_clips_with_plain_columns(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": [struct(RED, "x/red.png"), struct(BLUE), struct(RED, "r")],
                                          "question": ["q"] * 3, "answer": ["red", "blue", "red"]},
                 row_group_size=2)
    found = read(path)
    assert [content(s.images[0]) for s in found] == [RED, BLUE, RED]
    names = [media.name(s.images[0]) for s in found]
    assert names == [b"red.png", b"a-2-1.jpg", b"r.jpg"]  # the first that has no ending says the column's
    assert image.load(found[1].images[0], 16).shape == (3, 16, 16)
    assert {media.digest(s.images[0]) for s in found} == {media.digest(found[0].images[0]),
                                                          media.digest(found[1].images[0])}
    (heard,) = read(write(tmp_path / "b.parquet", {"audio": [struct(WAV)], "sentence": ["hi"]}))
    assert len(audio.load(heard.audios[0])) == 3200 and heard.task == "asr"


def test_lists_of_images_in_messages_and_conversations(tmp_path):
    talks = [[{"role": "user", "content": "<image><image>Which?"}, {"role": "assistant", "content": "both"}],
             [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
             [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "red"}]]
    images = [[struct(RED), struct(BLUE)], [], [struct(RED, "z.png")]]
    two, none, one = read(write(tmp_path / "a.parquet", {"messages": talks, "images": images}))
    assert [content(p) for p in two.images] == [RED, BLUE] and none.images == () and len(one.images) == 1
    llava = [[{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}]]
    (sample,) = read(write(tmp_path / "b.parquet", {"image": [struct(RED)], "conversations": llava}))
    assert content(sample.images[0]) == RED
    (sample,) = read(write(tmp_path / "c.parquet", {"images": [[RED, BLUE]], "messages": talks[:1]}))
    assert [content(p) for p in sample.images] == [RED, BLUE]


def test_media_inside_the_parts_of_messages(tmp_path):
    def part(**more):
        return {"type": next(iter(more)), "text": None, "image": None, **more}
    parts = [part(image=struct(RED)), part(image=struct(BLUE)), part(text="Same?")]
    talk = [{"role": "user", "content": parts},
            {"role": "assistant", "content": [part(text="no")]}]
    (sample,) = read(write(tmp_path / "a.parquet", {"messages": [talk]}))
    assert sample.messages == (("user", "<image><image>Same?"), ("assistant", "no"))
    assert [content(p) for p in sample.images] == [RED, BLUE]


def test_rows_without_bytes_or_with_a_path_alone(tmp_path):
    (tmp_path / "own.png").write_bytes(BLUE)
    path = write(tmp_path / "a.parquet", {"image": [struct(None, "own.png"), None, struct(RED, "in.png")],
                                          "question": ["q"] * 3, "answer": ["a"] * 3})
    own, none, inside = read(path)
    assert own.images == (str(tmp_path / "own.png"),) and none.images == ()
    assert content(inside.images[0]) == RED
    paths = pa.array([struct(None, "own.png")], pa.struct(HF))
    path = write(tmp_path / "c.parquet", {"image": paths, "text": ["a"]})
    assert read(path)[0].images == (str(tmp_path / "own.png"),)
    path = write(tmp_path / "b.parquet", {"image": [None, RED], "text": ["a", "b"]})
    source = manifest.read(path)
    assert [n for n, _ in source.skipped] == [1] and content(source.samples[0].images[0]) == RED


@pytest.mark.parametrize("statistics", [True, False])
def test_bytes_are_not_read_to_find_the_rows(tmp_path, monkeypatch, statistics):
    columns = {"image": [struct(RED, f"{i}.png") if i % 3 else None for i in range(9)],
               "question": ["q"] * 9, "answer": ["a"] * 9}
    path = write(tmp_path / "a.parquet", columns, row_group_size=4, write_statistics=statistics)
    asked = []
    plain = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches",
                        lambda self, columns, **options: asked.extend(columns) or
                        plain(self, columns=columns, **options))
    found = read(path)
    assert ("image.bytes" in asked) is not statistics
    names = [media.name(p).decode() for s in found for p in s.images]
    assert names == [f"{i}.png" for i in range(9) if i % 3]
    assert all(content(p) == RED for s in found for p in s.images)


def test_any_order_of_reads_gives_the_same_bytes_within_a_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH", 3000)
    contents = [bytes([i]) * 1000 for i in range(40)]
    path = write(tmp_path / "a.parquet", {"image": [struct(c, f"{i}.png") for i, c in enumerate(contents)],
                                          "question": ["q"] * 40, "answer": ["a"] * 40}, row_group_size=16)
    pieces = [s.images[0] for s in read(path)]
    for i in [*range(40), 3, 39, 0, 17, 16, 15, 2, 9, 38, 31]:
        assert content(pieces[i]) == contents[i]
    assert parquet._column(path, 0, os.getpid()).batch.num_rows <= 3
    assert media.size(pieces[5]) == pytest.approx(1000, rel=0.2)


def test_class_labels_are_their_names(tmp_path):
    table = pa.table({"img": [struct(RED), struct(BLUE)], "label": [1, 0], "__index_level_0__": [0, 1]})
    features = {"info": {"features": {"label": {"names": ["cat", "big_dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [s.answer for s in read(str(tmp_path / "a.parquet"), question="What?")] == ["big dog", "cat"]


def test_every_column_is_accounted_for(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": [struct(RED)], "question": ["q"], "answer": ["a"],
                                          "mood": ["x"], "scan": [struct(BLUE, "y.png")]})
    with pytest.raises(UserError, match='"scan" looks like a medium'):
        manifest.read(path)
    assert manifest.read(path, columns={"ignore": "scan"}).unread == {"mood": 1}
    ((sample,),) = [manifest.read(path, columns={"image": "scan", "ignore": "image"}).samples]
    assert content(sample.images[0]) == BLUE


def test_what_is_wrong_with_a_file_is_one_line(tmp_path, monkeypatch):
    good = write(tmp_path / "a.parquet", {"image": [struct(RED)], "question": ["q"], "answer": ["a"]})
    (piece,) = read(good)[0].images
    (tmp_path / "bad.parquet").write_bytes(open(good, "rb").read()[:-300])
    with pytest.raises(UserError, match="bad.parquet: not a readable Parquet file") as caught:
        manifest.read(str(tmp_path / "bad.parquet"))
    assert "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="changed"):
        media.source(piece.replace("@0+", "@7+"))
    parquet._column.cache_clear()
    parquet.library.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="a.parquet: reading Parquet needs pyarrow: pip install pyarrow"):
        manifest.read(good)
    with pytest.raises(MediaError, match="pip install pyarrow"):
        media.source(piece)
    monkeypatch.undo()
    parquet.library.cache_clear()
    assert content(piece) == RED


def packed(source: Path, path: Path, rows: slice) -> None:
    """Some lines of a toy source as Parquet, with their media inside."""
    lines = (source / f"{path.parent.name}.jsonl").read_text().splitlines()[rows]
    lines = [json.loads(line) for line in lines]
    path.parent.mkdir(exist_ok=True)
    write(path, {kind: [[struct((source / name).read_bytes(), name) for name in line[kind]] for line in lines]
                 for kind in ("images", "audios")} | {
        "messages": [line["messages"] for line in lines]}, row_group_size=4)


def test_a_run_on_shards_is_the_run_on_their_files_to_the_bit_and_resumes(toy, tmp_path):
    source = toy.root / "data" / "image_audio_text"
    packed(source, tmp_path / "train" / "0.parquet", slice(5))
    packed(source, tmp_path / "train" / "1.parquet", slice(5, None))
    packed(source, tmp_path / "val" / "0.parquet", slice(None))
    settings = {"feature_cache_gb": 0, "freeze_encoders": False, "num_epochs": 1, "samples_per_epoch": 12,
                "save_every_steps": 1}

    def run(folder: Path, place: Path, end: str, *arguments: str, **more) -> Path:
        paths = {split: str(place / f"{split}{end}") for split in ("train", "val")}
        return train(toy, folder, *arguments, **settings, **more,
                     data_mix={"a": {"weight": 1, "task": "qa", **paths}})
    files = run(tmp_path / "files", source, ".jsonl")
    shards = run(tmp_path / "shards", tmp_path, "", num_workers=2)
    assert_same_end(files, shards, 3)
    (shards / "step_000003.pt").unlink()
    resumed = run(tmp_path / "shards", tmp_path, "", "--resume", str(shards / "step_000002.pt"))
    assert_same_end(resumed, files, 3)
