"""A line of a manifest becomes a checked sample, or is skipped with a reason."""

import json
import os

import pytest

from omni.base.errors import UserError
from omni.data import manifest


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "set"
    inside.mkdir()
    for name in ("a.png", "b.png", "c.wav", "../outside.png"):
        (inside / name).write_bytes(b"x")
    return inside


def read(folder, *entries, **options):
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest.read(str(folder / "m.jsonl"), **options)


def chat(question="What?", answer="yes", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            **more}


def test_a_good_line_becomes_a_sample(folder):
    source = read(folder, chat("<image>and <audio>", images=["a.png"], audios=["c.wav"], group="g",
                               transcript="t"))
    (sample,) = source.samples
    assert sample.messages == (("user", "<image>and <audio>"), ("assistant", "yes"))
    assert sample.answer == "yes"
    assert sample.images == (str(folder / "a.png"),) and sample.audios == (str(folder / "c.wav"),)
    assert (sample.task, sample.group, sample.transcript) == ("qa", "g", "t") and not source.skipped


def test_media_without_placeholders_go_before_the_first_question(folder):
    (sample,) = read(folder, chat("What?", images=["a.png", "b.png"])).samples
    assert sample.messages[0] == ("user", "<image><image>What?")


def test_all_of_a_plain_text_is_trained_on(folder):
    (sample,) = read(folder, {"text": "once upon a time"}).samples
    assert sample.messages == (("assistant", "once upon a time"),)


def test_a_byte_order_mark_and_empty_lines_are_ignored(folder):
    line = json.dumps(chat())
    (folder / "m.jsonl").write_text(f"\ufeff{line}\n\n  \n{line}", encoding="utf-8")
    source = manifest.read(str(folder / "m.jsonl"))
    assert len(source.samples) == 2 and not source.skipped


BAD = {
    "not JSON": ("{", "not valid JSON"), "a list": ("[]", "not a JSON object"), "empty": ({}, "messages"),
    "deep": ("[" * 100_000, "not valid JSON"), "no turn": ({"messages": []}, "messages"),
    "odd role": ({"messages": [{"role": "bot", "content": "x"}]}, "role"),
    "content null": (chat(question=None), "text as content"),
    "no answer": ({"messages": [{"role": "user", "content": "x"}]}, "turns"),
    "two questions": ({"messages": [{"role": "user", "content": "x"}] * 2}, "turns"),
    "late system": ({"messages": [*chat()["messages"], {"role": "system", "content": "x"}]}, "system"),
    "empty answer": (chat(answer="  "), "empty"),
    "missing file": (chat(images=["no.png"]), "missing"), "folder as file": (chat(images=["."]), "missing"),
    "above": (chat(images=["../outside.png"]), "leaves"),
    "absolute": (chat(images=["/etc/hostname"]), "leaves"),
    "zero byte": (chat(images=["a\0.png"]), "missing"), "too long a name": (chat(images=["a." * 2500]),
                                                                            "missing"),
    "images with a number": (chat(images=[1]), "needs a path"),
    "too few placeholders": (chat("<image>", images=["a.png", "b.png"]),
                             "1 <image> placeholders for 2 files"),
    "too many placeholders": (chat("<audio><audio>", audios=["c.wav"]), "2 <audio> placeholders for 1 files"),
    "no file": (chat("<image>"), "1 <image> placeholders for 0 files"),
    "in the answer": (chat("a", "<image>", images=["a.png"]), "in an answer"),
    "half a surrogate": ('{"text": "\\ud800"}', "surrogate"),
    "half a surrogate in an answer": (chat(answer="\ud800"), "surrogate"),
    "empty plain text": ({"text": " "}, "empty"),
    "a long line": (chat("x" * 1_000_001), "longer")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_skipped_with_its_reason(folder, name):
    entry, reason = BAD[name]
    source = read(folder, chat(), entry, chat())
    assert len(source.samples) == 2
    ((line, message),) = source.skipped
    assert line == 2 and reason in message and "\n" not in message


def test_a_link_that_leaves_the_folder_is_refused(folder):
    os.symlink(folder.parent / "outside.png", folder / "link.png")
    assert "leaves" in read(folder, chat(images=["link.png"])).skipped[0][1]


def test_outside_paths_are_read_where_allowed(folder):
    source = read(folder, chat(images=["../outside.png"]), allow_outside_paths=True)
    assert source.samples[0].images == (str(folder.parent / "outside.png"),)


def test_too_many_skipped_lines_are_an_error_with_count_reason_and_line(folder):
    source = read(folder, *[chat()] * 9, "{")
    assert source.check(0.1) is source
    with pytest.raises(UserError, match=r"1 of 10 .*1x not valid JSON.*line 10.*max_skipped"):
        source.check(0.09)


@pytest.mark.parametrize("lines", [[], ["{"]])
def test_a_manifest_without_usable_lines_is_an_error(folder, lines):
    with pytest.raises(UserError, match="m.jsonl"):
        read(folder, *lines).check(1.0)


def test_a_file_that_is_not_a_manifest_gives_a_one_line_error(folder):
    (folder / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, word in (("bad.jsonl", "UTF-8"), ("none.jsonl", "can't open"), (".", "can't open")):
        with pytest.raises(UserError, match=word) as caught:
            manifest.read(str(folder / name))
        assert "\n" not in str(caught.value)
