"""A user's own data: skipped samples, the held-out share, a run on several formats, omni.inspect."""

import json
import os
import pickle
import random
import tarfile

import numpy as np
import pytest
import soundfile
from conftest import assert_user_error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from published import assistant, clip, picture, put, tar, user, write

import sft_omni
from omni.base.errors import MediaError, UserError
from omni.data import image, manifest, media
from omni.data.media import Piece


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"img/a.png": picture(), "img/b.jpg": picture("blue", "JPEG"), "wav/c.wav": clip()})
    return tmp_path


def test_a_truncated_or_compressed_shard_is_refused(folder):
    tar(folder / "s.tar", {"1.png": picture(), "1.txt": "red"})
    (sample,) = manifest.read(str(folder / "s.tar")).samples
    content = (folder / "s.tar").read_bytes()
    (folder / "s.tar").write_bytes(content[:540])
    with pytest.raises(MediaError, match="cut short"):
        image.load(sample.images[0], 16)
    with tarfile.open(folder / "z.tar", "w:gz") as archive:
        archive.add(folder / "img", "img")
    with pytest.raises(UserError, match="compressed"):
        manifest.read(str(folder / "z.tar"))


@pytest.mark.parametrize("entry, reason", [
    ({"messages": [user([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]), assistant("a")]},
     "nothing is fetched"), ({"messages": [user("<video>"), assistant("a")], "videos": ["v.mp4"]}, "video"),
    ({"messages": [user("q"), {"role": "tool", "content": "x"}, assistant("a")]}, 'role "tool"'),
    ({"messages": [user("q"), assistant("bad")], "label": False}, "bad answer"),
    ({"instruction": "q", "chosen": "a", "rejected": "b"}, "preference"),
    ({"messages": [user("q"), assistant("a", weight=0)]}, "no answer"),
    ({"messages": [user("q"), assistant("a", weight=0.5)]}, '"weight" 1 or 0'),
    ({"messages": [user([{"type": "image", "image": "a.png@0+9/x.png"}]), assistant("a")]}, "missing"),
    ({"messages": [user([{"type": "image", "image": "/etc/hostname"}]), assistant("a")]}, "leaves"),
    ({"image": "img/none.png", "caption": "x"}, "missing"), ({"image": "img/a.png", "caption": ""}, "empty"),
    ({"conversations": [{"from": "observation", "value": "x"}]}, 'role "observation"')])
def test_an_entry_that_cannot_be_used_is_skipped_with_its_reason(folder, entry, reason):
    good = {"query": "q", "response": "r"}
    source = manifest.read(write(folder, "m.jsonl", [good, entry, good]))
    ((number, message),) = source.skipped
    assert number == 2 and reason in message and len(source.samples) == 2


@pytest.mark.parametrize("name, content, word", [
    ("x.json", "[1, 2", "line 1, column"), ("x.csv", "a,b\n1,2\n", "column for the answer"),
    ("x.bin", b"\x89PNG\r\n\xff\xff", "UTF-8"), ("x.json", "[" * 100_000, "not valid JSON")])
def test_a_file_of_no_known_format_gives_a_one_line_error(folder, command, name, content, word):
    put(folder, {name: content})
    assert_user_error(command("-m", "omni.inspect", folder / name), name, word)


def test_a_malformed_row_is_skipped_and_an_open_quote_is_an_error(tmp_path):
    put(tmp_path, {"t.csv": 'question,answer\n"a"x,b\na,b,c\n"two\nlines",ok\nlast,one\n'})
    source = manifest.read(str(tmp_path / "t.csv"))
    assert [s.answer for s in source.samples] == ["ok", "one"]
    assert [(line, reason[:20]) for line, reason in source.skipped] == [
        (2, "not a readable row ("), (3, "3 columns, and the h")]
    put(tmp_path, {"t.csv": 'question,answer\na,b\n"open,b\nc,d\n'})
    with pytest.raises(UserError, match="line 3: a quote opened here is not closed"):
        manifest.read(str(tmp_path / "t.csv"))
    for text in ('text,"a\nb,c\n', '"a"b,text\n1,2\n', "\n\n text \nhi\n"):
        put(tmp_path, {"t.csv": text})
        try:
            manifest.read(str(tmp_path / "t.csv"))
        except UserError as err:
            assert "t.csv, line 1" in str(err)


def test_an_image_outside_the_class_folders_is_skipped_and_hidden_files_are_ignored(folder):
    put(folder, {"set/cat/1.png": picture(), "set/2.png": picture(), "set/.trash/3.png": picture()})
    source = manifest.read(str(folder / "set"), question="What?")
    assert [s.answer for s in source.samples] == ["cat"] and len(source.skipped) == 1


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", "/dev/zero", tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="can't open"):
            manifest.read(str(path))


def test_a_piece_is_a_str_and_can_be_pickled():
    assert isinstance(Piece.at("/d/s.tar", 512, 9, "a/b.png"), str)
    assert Piece.at("/d/s.tar", 512, 9, "a/b.png") == "/d/s.tar@512+9/b.png"
    again = pickle.loads(pickle.dumps(Piece.at("/d/s.tar", 512, 9, "b.png")))  # to the workers of a loader
    assert isinstance(again, Piece) and again == "/d/s.tar@512+9/b.png"


def test_the_size_of_a_medium_is_that_of_its_file_or_piece(tmp_path):
    (tmp_path / "a.wav").write_bytes(bytes(7))
    assert media.size(tmp_path / "a.wav") == 7 and media.size(Piece.at("/d/s.tar", 512, 9, "b.png")) == 9
    assert media.size(tmp_path / "absent.wav") == 0


def conversations(count: int) -> list[dict]:
    return [{"query": f"question {i}", "response": str(i)} for i in range(count)]


def split(folder, entries, share: float) -> tuple[set, set]:
    splits = manifest.read(write(folder, "m.jsonl", entries)).split(share)
    return tuple({s.answer for s in samples} for samples in splits)


def test_held_out_samples_stay_held_out_when_the_file_grows_is_shuffled_or_moves(tmp_path):
    train, val = split(tmp_path, conversations(2000), 0.05)
    assert len(train) + len(val) == 2000 and 60 <= len(val) <= 140 and not train & val
    more = conversations(4000)
    random.Random(0).shuffle(more)
    more_train, more_val = split(tmp_path, more, 0.05)
    assert train <= more_train and val <= more_val
    (tmp_path / "moved").mkdir()
    assert split(tmp_path / "moved", conversations(2000), 0.05) == (train, val)


def test_a_larger_share_holds_out_more_samples_and_any_share_at_least_one(tmp_path):
    small, large = (split(tmp_path, conversations(300), share)[1] for share in (0.1, 0.4))
    assert small < large
    assert len(split(tmp_path, conversations(3), 0.001)[1]) == 1


@pytest.mark.parametrize("count, share, held_out", [
    (4, 0.3, 1), (4, 0.5, 2), (10, 0.3, 3), (20, 0.1, 2), (3, 0.9, 2), (2, 0.1, 1), (100, 0.05, 5),
    (1, 0.5, 1)])
def test_a_small_source_gives_about_the_wanted_share(tmp_path, count, share, held_out):
    assert len(split(tmp_path, conversations(count), share)[1]) == held_out


def test_equal_samples_are_in_the_same_split_and_media_names_count_as_content(folder):
    train, val = manifest.read(write(folder, "m.jsonl", conversations(50) * 3)).split(0.3)
    assert not set(train) & set(val)
    messages = [user("<image>?"), assistant("x")]
    entries = [{"messages": messages, "images": [f"img/{i}.png"]} for i in range(60)]
    put(folder, {f"img/{i}.png": picture() for i in range(60)})
    _, val = manifest.read(write(folder, "m.jsonl", entries)).split(0.3)
    assert 5 < len(val) < 35


def test_a_run_on_several_formats_prints_each_format_and_its_counts(toy, folder, capsys):
    put(folder, {f"set/{color}/{i}.png": picture(color) for color in ("red", "blue") for i in range(6)})
    put(folder, {f"wav/{i}.wav": clip(0.3 + i / 50) for i in range(8)})
    put(folder, {"asr.csv": "path,text\n" + "".join(f"wav/{i}.wav,low\n" for i in range(8)) + "no.wav,low\n"})
    tar(folder / "s.tar", {f"{i}.{end}": content for i in range(8)
                           for end, content in (("png", picture()), ("txt", "red"))})
    config = toy.write(folder, num_epochs=1, samples_per_epoch=12, max_skipped=0.2, data_mix={
        "kinds": {"weight": 1, "image_folder": str(folder / "set"), "question": "What color?", "val": 0.3},
        "heard": {"weight": 1, "train": str(folder / "asr.csv"), "val": 0.3},
        "shard": {"weight": 1, "train": str(folder / "s.tar"), "val": str(folder / "s.tar")}})
    sft_omni.main(["--config", config])
    printed = capsys.readouterr().out
    assert "source kinds: image folder: images with text; 12 samples, 12 media, 0 skipped" in printed
    assert "source heard: CSV: clips with text; 8 samples, 8 media, 1 skipped" in printed
    assert "source shard: 8 of 8 held-out samples share an image or clip with training" in printed
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    epoch = next(row for row in rows if row["event"] == "epoch")
    assert {"image_qa", "audio_wer", "kinds/qa", "heard/wer", "shard/qa"} <= epoch.keys()


def test_no_samples_left_to_train_on_gives_a_one_line_error(toy, tmp_path, command):
    path = write(tmp_path, "m.jsonl", conversations(1))
    config = toy.write(tmp_path, data_mix={"a": {"weight": 1, "train": path, "val": 0.5}})
    assert_user_error(command("sft_omni.py", "--config", config), "m.jsonl", "lower it")


def test_inspect_shows_samples_lengths_and_problems(toy, folder, command):
    put(folder, {"img/broken.png": "<html>404</html>"})
    soundfile.write(folder / "wav/gsm.wav", np.zeros(8000), 8000, subtype="GSM610")
    names = ("a.png", "b.jpg", "broken.png", "no.png")
    images = [{"image": f"img/{name}", "caption": "red"} for name in names]
    clips = [{"audio": f"wav/{name}", "text": "hi"} for name in ("c.wav", "gsm.wav")]
    path = write(folder, "m.jsonl", [*images, *clips])
    done = command("-m", "omni.inspect", path, "--config", toy.write(folder), "--samples", 5, "--columns",
                   "audio=tone")
    assert_user_error(done, '"columns" name "tone", which no entry has', "image, caption")
    done = command("-m", "omni.inspect", path, "--config", toy.write(folder), "--samples", 5, "--task", "qa")
    assert done.returncode == 0, done.stderr
    for words in ("JSON lines: images with text, clips with text; 5 samples, 5 media, 1 skipped", "24x16",
                  "0.2 s", "sample 1: qa, ", "tokens", "assistant: red", "length in tokens:", "#",
                  f"problem: 1x a file of \"images\" is missing: {folder / 'img/no.png'} (first: line 4)",
                  "problem: 1x not an image",
                  "problem: 1x not readable as sound"):
        assert words in done.stdout, words


def test_inspect_shows_the_lengths_that_batches_have(toy, folder):
    from omni.base.config import SFTConfig, build
    from omni.inspect import SampleMeter
    (sample,) = manifest.read(write(folder, "m.jsonl", [
        {"messages": [user("<image>and <audio>"), assistant("yes")], "images": ["img/a.png"],
         "audios": ["wav/c.wav"]}])).samples
    meter = SampleMeter(build(SFTConfig, toy.config, "toy"))
    meter.measure([sample])
    assert meter.length(sample) == int(toy.collator(toy.model())([sample]).layout.cu_seqlens[1])


KEYS = ("messages", "conversations", "conversation", "instruction", "input", "output", "query", "response",
        "history", "system", "images", "audios", "image", "audio", "path", "text", "question", "role",
        "content", "from", "value", "type", "image_url", "url", "input_audio", "data", "loss", "weight",
        "label", "task", "group", "objects", "human", "assistant", "sentence", "Image", "offset", "duration",
        "choices", "captions", "source", "target", "foo", "video_path", "prompt", "completion", "train")
TEXTS = ("", "user", "assistant", "human", "gpt", "text", "image", "image_url", "input_audio", "img/a.png",
         "hi", "<image>", "data:image/png;base64,AAAA", "data:", "\ud800", "a\0b", "../x", "https://x/y.png")
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.just(1.5), st.sampled_from(TEXTS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)), max_leaves=12)
PIECES = ("path,text", "a|b|c", "wav;sentence", "x.png,hi", "text", "\t", "\"", "\n", "\r\n", "\0", "{", "[")


@settings(max_examples=400, deadline=None)
@given(entries=st.lists(VALUES, min_size=1, max_size=4), name=st.sampled_from(["f.jsonl", "f.json"]))
def test_every_entry_of_any_json_file_is_read_or_skipped(tmp_path_factory, entries, name):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    put(folder, {"img/a.png": b"x"})
    # it may hold several
    assume(name == "f.json" or len(entries) > 1 or not isinstance(entries[0], list | dict))
    try:
        source = manifest.read(write(folder, name, entries))
    except UserError as err:  # a medium under an unknown key
        assert "looks like a medium" in str(err) and "\n" not in str(err)
        return
    assert len(source.samples) + len(source.skipped) == len(entries)
    assert all(isinstance(text, str) for s in source.samples for _, text in s.messages)
    source.split(0.5)


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode),
                         st.lists(st.sampled_from(PIECES), max_size=12).map(lambda p: "".join(p).encode())),
       name=st.sampled_from(["f.csv", "f.tsv", "f.json", "f.tar", "f"]))
def test_a_file_of_any_content_is_read_or_refused_in_one_line(tmp_path_factory, content, name):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    put(folder, {name: content})
    try:
        manifest.read(str(folder / name))
    except UserError as err:
        assert "\n" not in str(err)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 4000), value=st.integers(0, 255), cut=st.integers(0, 5000))
def test_a_damaged_shard_is_read_or_refused(tmp_path_factory, place, value, cut):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    tar(folder / "s.tar", {"1.png": picture(), "1.txt": "red", "2.png": picture("blue"), "2.txt": "blue"})
    content = bytearray((folder / "s.tar").read_bytes())
    content[place] = value
    (folder / "s.tar").write_bytes(bytes(content[:len(content) - cut]))
    try:
        for sample in manifest.read(str(folder / "s.tar")).samples:
            image.load(sample.images[0], 8) if sample.images else None
    except (UserError, MediaError) as err:
        assert "\n" not in str(err)
