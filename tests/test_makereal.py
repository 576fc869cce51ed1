"""`data/make_real.py` on small folders with the layout of the four published sets."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.data import manifest

ROOT = Path(__file__).resolve().parent.parent
SPEAKERS = ("anna", "bert", "lucas")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The script's output for two pictures per split and kind, three speakers, and twenty instructions."""
    real, out = tmp_path_factory.mktemp("real"), tmp_path_factory.mktemp("out")
    rng = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)

    for split in ("train", "test"):
        for number in range(2):
            picture(real / "easy-vqa" / split / "images" / f"{number}.png")
            for kind in ("airplane", "cat"):
                picture(real / "cifar10" / split / kind / f"{number:04d}.jpg")
        (real / "easy-vqa" / split / "questions.json").write_text(
            json.dumps([[question, "circle", number] for number in range(2)
                        for question in ("what shape is in the image?", "what shape is present?")]))
    (real / "fsdd").mkdir()
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in range(7):
                tone = np.sin(np.arange(1600) * 0.02 * (digit + 1)) * 0.1 * (1 + SPEAKERS.index(speaker))
                soundfile.write(real / "fsdd" / f"{digit}_{speaker}_{take}.wav", tone, 8000)
    (real / "alpaca").mkdir()
    (real / "alpaca" / "a.json").write_text(json.dumps(
        [{"instruction": f"Count to {i}.", "input": "", "output": f"{i}"} for i in range(20)]))
    subprocess.run([sys.executable, "data/make_real.py", "--real", real, "--out", out,
                    "--strings", "240"], check=True, cwd=ROOT,
                   capture_output=True)
    return out


@pytest.mark.parametrize("name, train, val, task", [
    ("easyvqa", 2, 4, "qa"), ("animals", 4, 10, "qa"), ("digits", 240, 40, "asr"),
    ("alpaca", 18, 2, "text")])
def test_every_sample_is_read_and_no_medium_is_in_both_splits(made, name, train, val, task):
    sides = [manifest.read(str(made / name / f"{split}.jsonl")) for split in ("train", "val")]
    assert [len(side.samples) for side in sides] == [train, val] and not any(side.skipped for side in sides)
    assert {sample.task for side in sides for sample in side.samples} == {task}
    media = [{path for s in side.samples for path in s.images + s.audios} for side in sides]
    assert not media[0] & media[1]


@pytest.mark.parametrize("name, turns", [("easyvqa", [4]), ("animals", [4, 6])])  # things have no third turn
def test_a_picture_is_a_conversation_in_training_and_single_questions_when_held_out(made, name, turns):
    conversations, questions = (manifest.read(str(made / name / f"{split}.jsonl")).samples
                                for split in ("train", "val"))
    assert sorted({len(c.messages) for c in conversations}) == turns
    assert {len(question.messages) for question in questions} == {2}


def test_the_answers_about_photographs(made):
    questions = manifest.read(str(made / "animals" / "val.jsonl")).samples
    assert {q.answer for q in questions} == {
        "There is an airplane in the picture.", "There is a cat in the picture.", "This is a cat.",
        "Yes, it is an animal.", "No, it is a thing."}


def test_the_held_out_speaker_is_a_group_and_not_in_training(made):
    train, val = (manifest.read(str(made / "digits" / f"{split}.jsonl")).samples
                  for split in ("train", "val"))
    left_out = [sample for sample in val if sample.group == "left_out_speaker"]
    assert len(left_out) == len(val) // 3 and not any(sample.group for sample in train)
    # lucas is the loudest here, so only held-out clips may be as loud
    loudest = [max(float(np.abs(soundfile.read(s.audios[0])[0]).max()) for s in samples)
               for samples in (train, left_out)]
    assert loudest[0] < 0.25 and loudest[1] > 0.29
    rates = {soundfile.info(s.audios[0]).samplerate for s in train}
    assert len(rates) > 20 and {soundfile.info(s.audios[0]).samplerate for s in val} == {8000}
