"""`data/make_spoken.py`: which texts are spoken, and which are held out."""

import json
import random
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "data"))

import make_fresh_speech  # noqa: E402
import make_spoken  # noqa: E402


def conversation(asked: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


NILE = "The Nile is long. It has 2 sources. - It is old.\nIt flows north."
LINES = [conversation("Name a large river, please.", NILE),
         conversation("What does NASA do?", "It flies to space. The Nile is long!"),
         conversation("Why is the sky blue?", "Light is scattered " * make_spoken.LONGEST)]


def test_short_texts_of_words_alone_are_spoken_once():
    assert make_spoken.sentences(LINES, True) == [
        ("instruction", "name a large river please", NILE),
        ("sentence", "the nile is long", ""), ("sentence", "it flows north", ""),
        ("sentence", "it flies to space", ""), ("instruction", "why is the sky blue", "")]
    assert all(answer == "" for _, _, answer in make_spoken.sentences(LINES, False))


def test_every_word_is_in_one_string():
    said = [text for _, text, _ in make_spoken.strings(LINES, random.Random(0))]
    words = " ".join(said).split()
    assert len(words) == len(set(words)) and {"nile", "sources", "scattered", "please"} <= set(words)
    assert "nasa" not in words and all(len(text.split()) == make_spoken.TOGETHER for text in said[:-1])


def test_what_is_held_out_is_not_spoken_in_training(tmp_path, monkeypatch):
    (tmp_path / "alpaca").mkdir()
    for name, lines in (("val", LINES[:1]), ("train", LINES[1:])):
        (tmp_path / "alpaca" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(make_fresh_speech, "spoken", lambda clips, rng: [np.zeros(16000)] * len(clips))
    monkeypatch.setattr(sys, "argv", ["make_spoken.py", "--texts", str(tmp_path / "alpaca"), "--out",
                                      str(tmp_path / "out")])
    make_spoken.main()
    made = {name: make_spoken.read(tmp_path / "out" / f"{name}.jsonl")
            for name in ("val", "train", "asked")}
    assert all(line["task"] == "asr" for line in made["val"])
    said = {name: [line.get("transcript", line["messages"][1]["content"]) for line in lines]
            for name, lines in made.items()}
    assert sorted(said["val"]) == ["it flows north", "name a large river please", "the nile is long"]
    assert said["train"].count("it flies to space") == make_spoken.TAKES
    assert "the nile is long" not in said["train"]
    assert {*said["asked"]} == {"why is the sky blue"}
    assert all((tmp_path / "out" / line["audios"][0]).exists() for line in made["train"] + made["val"])
