"""What a person asks first, of the system that the default run makes; skipped until it has been made."""

import json

import pytest
from conftest import ROOT

from omni import OmniModel
from omni.eval.grading import WordErrors, word_errors

SYSTEM = ROOT / "checkpoints/omni_sft_tiny/omni_final.pt"
IMAGES, CLIPS = ROOT / "data/tiny/image_text/img", ROOT / "data/tiny/audio_text/audio"
pytestmark = pytest.mark.skipif(not SYSTEM.exists(), reason="the default run has not made its system here")


@pytest.fixture(scope="module")
def ask():
    model = OmniModel.load(SYSTEM)

    def answer(*parts) -> str:
        """A text is a question, a path is a picture or a clip."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else
                   {"type": "image", "image": str(part)} if part.suffix == ".webp" else
                   {"type": "audio", "audio": str(part)} for part in parts]
        return model.chat([{"role": "user", "content": content}])
    return answer


@pytest.mark.parametrize("question, words", [
    ("What is AI?", "artificial intelligence"), ("what is ai", "artificial intelligence"),
    ("hello", "help"), ("Hello!", "help"), ("Who are you?", "Omni"), ("who are you", "assistant"),
    ("Thank you", "welcome"), ("thanks", "welcome"), ("What can you do?", "questions"), ("Goodbye", "bye"),
    ("2 + 3", "5"), ("What is 2 + 3?", "5"), ("seven minus four", "three"),
    ("Who wrote Hamlet?", "don't know"), ("who wrote hamlet", "don't know")])
def test_a_first_question_gets_a_kind_answer(ask, question, words):
    assert words in ask(question)


def test_a_picture_is_named_and_described(ask):
    rabbit, cat = IMAGES / "val_00004.webp", IMAGES / "val_00006.webp"
    assert "rabbit" in ask(rabbit, "What animal?") and "cat" in ask(cat, "What thing is on the right?")
    assert ask(rabbit, "Describe the picture.") == "A small yellow rabbit and a small pink turtle on snow."


def test_speech_is_written_down(ask):
    lines = (CLIPS.parent / "val.jsonl").read_text(encoding="utf-8").splitlines()
    errors = WordErrors()
    for sample in [line for line in map(json.loads, lines) if line["task"] == "asr"][::8]:  # of all voices
        said = ask(CLIPS.parent / sample["audios"][0], "Transcribe the audio.")
        errors += word_errors(said, sample["messages"][-1]["content"])
    assert errors.words > 150 and errors.rate < 0.2
