"""A line of a manifest becomes a checked sample, or is skipped with its reason."""

import json
import os

import pytest

from omni.data import manifest
from omni.errors import UserError


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


def talk(question="What?", answer="yes", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            **more}


def test_a_good_line_becomes_a_sample(folder):
    source = read(folder, talk("<image>and <audio>", images=["a.png"], audios=["c.wav"], group="g",
                               transcript="t"))
    (sample,) = source.samples
    assert sample.messages == (("user", "<image>and <audio>"), ("assistant", "yes"))
    assert sample.answer == "yes"
    assert sample.images == (str(folder / "a.png"),) and sample.audios == (str(folder / "c.wav"),)
    assert (sample.task, sample.group, sample.transcript) == ("qa", "g", "t") and not source.skipped


def test_media_without_placeholders_go_before_the_first_question(folder):
    (sample,) = read(folder, talk("What?", images=["a.png", "b.png"])).samples
    assert sample.messages[0] == ("user", "<image><image>What?")


def test_plain_text_is_all_answer(folder):
    (sample,) = read(folder, {"text": "once upon a time"}).samples
    assert sample.messages == (("assistant", "once upon a time"),)


def test_byte_order_mark_and_empty_lines_are_nothing(folder):
    line = json.dumps(talk())
    (folder / "m.jsonl").write_text(f"\ufeff{line}\n\n  \n{line}", encoding="utf-8")
    source = manifest.read(str(folder / "m.jsonl"))
    assert len(source.samples) == 2 and not source.skipped


BAD = {
    "not JSON": ("{", "not valid JSON"), "a list": ("[]", "not a JSON object"), "empty": ({}, "messages"),
    "deep": ("[" * 100_000, "not valid JSON"), "no turn": ({"messages": []}, "messages"),
    "odd role": ({"messages": [{"role": "bot", "content": "x"}]}, "role"),
    "content a number": (talk(question=3), "text as content"),
    "no answer": ({"messages": [{"role": "user", "content": "x"}]}, "turns"),
    "two questions": ({"messages": [{"role": "user", "content": "x"}] * 2}, "turns"),
    "late system": ({"messages": [*talk()["messages"], {"role": "system", "content": "x"}]}, "system"),
    "empty answer": (talk(answer="  "), "empty"), "unknown task": (talk(task="sing"), "unknown task"),
    "missing file": (talk(images=["no.png"]), "missing"), "folder as file": (talk(images=["."]), "missing"),
    "above": (talk(images=["../outside.png"]), "leaves"),
    "absolute": (talk(images=["/etc/hostname"]), "leaves"),
    "zero byte": (talk(images=["a\0.png"]), "missing"), "too long a name": (talk(images=["a" * 5000]),
                                                                            "missing"),
    "images a text": (talk(images="a.png"), "list of paths"),
    "images with a number": (talk(images=[1]), "list"),
    "images null": (talk(images=None), "list of paths"),
    "too few placeholders": (talk("<image>", images=["a.png", "b.png"]),
                             "1 <image> placeholders for 2 files"),
    "too many placeholders": (talk("<audio><audio>", audios=["c.wav"]), "2 <audio> placeholders for 1 files"),
    "no file": (talk("<image>"), "1 <image> placeholders for 0 files"),
    "in the answer": (talk("a", "<image>", images=["a.png"]), "in an answer"),
    "placeholder in plain text": ({"text": "an <image> here"}, "placeholder"),
    "half a surrogate": ('{"text": "\\ud800"}', "surrogate"),
    "half a surrogate said": (talk(answer="\ud800"), "surrogate"),
    "empty plain text": ({"text": " "}, "empty"), "group a number": (talk(group=1), "group"),
    "a long line": (talk("x" * 1_000_001), "longer")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_skipped_with_its_reason(folder, name):
    entry, reason = BAD[name]
    source = read(folder, talk(), entry, talk())
    assert len(source.samples) == 2
    ((line, said),) = source.skipped
    assert line == 2 and reason in said and "\n" not in said


def test_a_link_out_of_the_folder_is_an_escape(folder):
    os.symlink(folder.parent / "outside.png", folder / "link.png")
    assert "leaves" in read(folder, talk(images=["link.png"])).skipped[0][1]


def test_outside_paths_are_read_where_allowed(folder):
    source = read(folder, talk(images=["../outside.png"]), allow_outside_paths=True)
    assert source.samples[0].images == (str(folder.parent / "outside.png"),)


def test_too_much_skipped_is_an_error_that_names_count_reason_and_line(folder):
    source = read(folder, *[talk()] * 9, "{")
    assert source.check(0.1) is source
    with pytest.raises(UserError, match=r"1 of 10 .*1x not valid JSON.*line 10.*max_skipped"):
        source.check(0.09)


@pytest.mark.parametrize("lines", [[], ["{"]])
def test_a_manifest_with_nothing_in_it_is_an_error(folder, lines):
    with pytest.raises(UserError, match="m.jsonl"):
        read(folder, *lines).check(1.0)


def test_a_file_that_is_no_manifest_is_one_line(folder):
    (folder / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, word in (("bad.jsonl", "UTF-8"), ("none.jsonl", "can't open"), (".", "can't open")):
        with pytest.raises(UserError, match=word) as caught:
            manifest.read(str(folder / name))
        assert "\n" not in str(caught.value)
