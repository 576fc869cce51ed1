"""`data/make_fresh_speech.py`: what is spoken to stage B, without what is held out."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "data"))

import make_fresh_speech  # noqa: E402
import more_voices  # noqa: E402
import ship_speech  # noqa: E402
from make_fresh_speech import Sentences, dev_clips, is_dev, line_of, sum_of  # noqa: E402
from make_speech import UNSEEN_VOICE  # noqa: E402
from wordings import plain  # noqa: E402

FIXED = ("word", "about", "definition")  # too few to leave some out


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, str, str]]:
    sentences = Sentences("a test")
    return [sentences.any() for _ in range(6000)]


def shipped(name: str) -> set[str]:
    lines = map(json.loads, (ROOT / "data/tiny/audio_text" / name).read_text(encoding="utf-8").splitlines())
    return {line.get("transcript", line["messages"][1]["content"]) for line in lines}


def test_no_held_out_sentence_or_sum_is_spoken(drawn):
    held = shipped("val.jsonl")
    sums = {sum_of(text) for text in held} - {None}
    assert len(sums) > 30 and sum_of("how much is six plus five") == ("plus", "five", "six")
    texts = {plain(said) for _, said, _ in drawn}
    assert len(texts) > 4000 and not texts & held
    assert not {sum_of(text) for text in texts} & sums


def test_sentences_to_choose_a_model_by_are_not_in_training(drawn):
    chosen = {plain(said) for (kind, said, _), _ in dev_clips(0, neural=True) if kind not in FIXED}
    assert len(chosen) > 200 and all(map(is_dev, chosen))
    assert not chosen & {plain(said) for kind, said, _ in drawn if kind not in FIXED}


def test_all_kinds_of_talk_are_heard(drawn):
    texts = {plain(said) for _, said, _ in drawn}
    assert {"hello", "who are you", "what can you do", "thank you", "what is ai"} <= texts
    assert {"hello", "thank", "ai", "computer"} <= {*make_fresh_speech.talk_words()}
    assert {kind for kind, *_ in drawn} == {*make_fresh_speech.KINDS}


def test_kinds_can_be_left_out():
    sentences = Sentences("a test", without=["unknown", "free"])
    drawn = {kind for kind, *_ in (sentences.any() for _ in range(2000))}
    assert drawn == {*make_fresh_speech.KINDS} - {"unknown", "free"}


def test_a_line_has_a_plain_transcript_and_is_said_with_letters():
    lines = [line_of(("definition", "What is AI?", "A machine."), "x.ogg", "flite_awb", random.Random(seed))
             for seed in range(20)]
    assert {line["spoken"] for line in lines} == {"What is A.I.", "what is A.I."}
    for line in lines:
        assert line["messages"][1]["content"] == ("A machine." if line["task"] == "qa" else "what is ai")
        assert line.get("transcript", "what is ai") == "what is ai"


def test_the_unseen_voice_never_speaks():
    voices = {more_voices.draw_voice(random.Random(seed)) for seed in range(3000)}
    assert len(voices) > 300 and not any("rms" in voice for voice in voices)
    assert UNSEEN_VOICE not in {*more_voices.ENGINES, more_voices.NEURAL_VOICE}


def test_a_recording_differs_but_keeps_the_words_in_place():
    wave = np.sin(np.arange(16_000) / 5) * np.hanning(16_000)
    takes = [more_voices.recorded(wave, np.random.default_rng(seed)) for seed in range(40)]
    assert len({take.tobytes() for take in takes}) == 40
    for take in takes:
        assert np.isfinite(take).all() and 0.14 < np.abs(take).max() <= 0.9
        assert len(wave) <= len(take) < len(wave) + 0.8 * 16_000
        middle = np.abs(take).argmax()
        assert 6_000 < middle < 10_000 + 0.4 * 16_000


def test_shipped_clips_are_of_the_wanted_kinds_and_hardly_repeat():
    lines = [line_of((kind, f"{kind} {i % 7}" if kind == "about" else f"free {i}", "yes"), f"{i}.ogg",
                     f"voice {i % 5}", random.Random(i)) for i in range(400) for kind in ("about", "free")]
    wanted = {("about", "qa"): 12, ("about", "asr"): 12, ("free", "asr"): 40}
    found = ship_speech.chosen(lines, wanted, random.Random(0))
    assert Counter((line["kind"], line["task"]) for line in found) == wanted
    assert len({(ship_speech.said(line), line["voice"]) for line in found}) == len(found)
    with pytest.raises(AssertionError, match="too few"):
        ship_speech.chosen(lines, {("about", "qa"): 300}, random.Random(0))
