"""Chatting with a system: from Python, with one command, and by typing."""

import dataclasses
import json
import os
import pty
import re
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from conftest import ROOT, assert_user_error

from omni import OmniModel
from omni.base import checkpoint
from omni.base.config import SFTConfig, build
from omni.base.errors import UserError
from omni.chat import Chat, as_sample, system_evaluator
from omni.data.question import question_parts, take_dragged, typed_path
from omni.model.generate import Sampling


@pytest.fixture(scope="module")
def saved(toy, tmp_path_factory) -> str:
    """A system in a file, its projectors untrained."""
    path = tmp_path_factory.mktemp("chat") / "omni_final.pt"
    config = build(SFTConfig, {**toy.config, "max_new_tokens": 12}, "toy")
    checkpoint.save(path, "omni", {**toy.model().content(), "config": dataclasses.asdict(config),
                                   "metrics": {}})
    return str(path)


@pytest.fixture(scope="module")
def system(saved) -> OmniModel:
    return OmniModel.load(saved, device="cpu")


@pytest.fixture
def media(toy) -> tuple[str, str]:
    data = toy.root / "data"
    return str(data / "image_text" / "val_0.png"), str(data / "audio_text" / "val_1.wav")


def part(kind: str, value: str) -> dict:
    return {"type": kind, kind: value}


def test_the_python_example_of_the_readme_runs(saved, media, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"(?m)(?:^    .*\n)*^    from omni import .*\n(?:^    .*\n)*", readme)
    assert "OmniModel.load(" in example and ".chat(" in example
    code = re.sub(r'"[^"]+\.pt"', repr(saved), textwrap.dedent(example))
    exec(re.sub(r'"[^"]+\.(png|jpg|webp)"', repr(media[0]), code), {})
    assert capsys.readouterr().out.endswith("\n")  # an untrained model may answer nothing


def test_an_answer_about_media_from_python(system, media):
    picture, clip = media
    content = [part("image", picture), part("audio", clip), part("text", "What is seen and heard?")]
    answer = system.chat([{"role": "user", "content": content}])
    assert isinstance(answer, str) and answer == system.chat([{"role": "user", "content": content}])


def test_the_answer_is_that_of_evaluation_and_comes_in_pieces(system, toy):
    sample = toy.samples("image_text", "val")[0]
    (wanted,) = system_evaluator(system).answers([sample])
    content = question_parts(sample.messages[0][1], list(sample.images), [])
    pieces = list(system.stream([{"role": "user", "content": content}]))
    assert "".join(pieces) == wanted and len(pieces) > 2


def test_history_several_media_and_system_messages(system, media):
    picture, clip = media
    messages = [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": [*[part("image", picture)] * 2, part("text", "?")]},
                {"role": "assistant", "content": "red"}, {"role": "user", "content": [part("audio", clip)]}]
    assert isinstance(system.chat(messages), str)


def test_media_replace_their_placeholders():
    kinds = [p["type"] for p in question_parts("a <audio> b <image>", ["x", "y"], ["z"])]
    assert kinds == ["image", "text", "audio", "text", "image", "text"]
    with pytest.raises(UserError, match="more <image>"):
        question_parts("<image><image>", ["x"], [])


@pytest.mark.parametrize("messages, word", [
    ([], "the user's"), ([{"role": "assistant", "content": "x"}], "the user's"),
    ([{"role": "user", "content": "<image>"}], "1 <image> placeholders for 0 files"),
    ([{"role": "user", "content": [part("image", "nowhere.png")]}], "nowhere.png: no such file"),
    ([{"role": "bot", "content": "x"}], "bot"),
    ([{"role": "user", "content": [{"type": "video"}]}], "video")])
def test_a_malformed_conversation_is_a_user_error(system, messages, word):
    with pytest.raises(UserError, match=word):
        system.chat(messages)


def test_sampling_is_greedy_at_temperature_0_seeded_and_limited_by_top_p():
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]]).expand(500, -1)
    assert (Sampling()(logits) == 1).all()
    drawn = Sampling(1.0, seed=3)(logits)
    assert torch.equal(drawn, Sampling(1.0, seed=3)(logits)) and len(drawn.unique()) > 2
    assert not torch.equal(drawn, Sampling(1.0, seed=4)(logits))
    assert set(Sampling(1.0, 0.9)(logits).tolist()) == {1, 2}
    assert set(Sampling(1.0, 0.01)(logits).tolist()) == {1}
    probabilities = logits[0].softmax(-1)
    assert torch.allclose((drawn == 1).float().mean(), probabilities[1], atol=0.08)


def test_sampled_answers_differ_by_seed_alone(system):
    ask = [{"role": "user", "content": "What is 1 plus 1?"}]
    said = [system.chat(ask, temperature=2.0, seed=seed) for seed in (0, 1, 2, 0)]
    assert said[0] == said[3] and len(set(said)) > 1


def test_the_command_answers_as_json_with_several_media(saved, media, command):
    picture, clip = media
    given = ("--image", picture, "--image", picture, "--audio", clip)
    done = command("-m", "omni.chat", "--ckpt", saved, *given, "--json", "Which?")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["images"] == [picture, picture] and row["question"] == "Which?"
    assert isinstance(row["answer"], str) and 0 < row["first_token_seconds"] <= row["seconds"]


@pytest.mark.parametrize("arguments, word", [
    (["--temperature", "-1", "hi"], "temperature"), (["--top-p", "0", "hi"], "top_p"),
    (["--max-new-tokens", "0", "hi"], "max_new_tokens"),
    (["--audio", "nowhere.wav"], "nowhere.wav")])
def test_unusable_arguments_are_a_user_error(saved, command, arguments, word):
    assert_user_error(command("-m", "omni.chat", "--ckpt", saved, *arguments), word)


def test_an_interactive_session(saved, media):
    """In a terminal: prompt, image, wrong path, question, history, unknown command, /reset, Ctrl-D."""
    picture, clip = media
    terminal, other_end = pty.openpty()
    chat = subprocess.Popen([sys.executable, "-m", "omni.chat", "--ckpt", saved], cwd=ROOT, stdin=other_end,
                            stdout=other_end, stderr=other_end)
    os.close(other_end)
    screen = ""

    def until(mark: str, times: int) -> None:
        nonlocal screen
        deadline = time.time() + 60
        while screen.count(mark) < times and time.time() < deadline:
            screen += os.read(terminal, 4096).decode(errors="replace")
        assert screen.count(mark) >= times, screen

    lines = [f"/image {picture}", "/image no such.png", "What color?", f"/audio {clip}", "And this?", "/sing",
             "/reset", "hi"]
    until("> ", 1)
    for count, line in enumerate(lines, 2):
        os.write(terminal, line.encode() + b"\n")
        until("> ", count)
    os.write(terminal, b"\x04")
    assert chat.wait(timeout=30) == 0
    os.close(terminal)
    assert "Ask something." in screen and "no such.png: no such file" in screen and "Traceback" not in screen
    assert "unknown command /sing" in screen


def test_a_session_in_json_for_scripts(saved, media, command):
    picture, _ = media
    done = command("-m", "omni.chat", "--ckpt", saved, "--json", input=f"/image {picture}\nWhat?\nAnd?\n")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["images"] == [picture] and second["images"] == []


def test_media_longer_than_max_length_are_a_user_error(system, monkeypatch, toy):
    sample = toy.samples("image_text")[0]
    monkeypatch.setattr(system, "config", dataclasses.replace(system.config, max_length=16))
    with pytest.raises(UserError, match="too long: .* max_length is 16"):
        system.chat([{"role": "user", "content": [{"type": "image", "image": sample.images[0]}] * 8}])


def test_a_temperature_that_overflows_is_a_user_error(system):
    with pytest.raises(UserError, match="temperature must be 0"):
        system.chat([{"role": "user", "content": "hi"}], temperature=1e-40)


@pytest.mark.parametrize("typed, found", [
    ("cat.png", "cat.png"), ("my cat.png", "my cat.png"), ("'my cat.png' ", "my cat.png"),
    ("my\\ cat.png", "my cat.png"), ('"my cat.png"', "my cat.png"), ("it's.png", "it's.png"),
    ("'it'\\''s.png'", "it's.png"), ("file:///home/me/my%20cat.png", "/home/me/my cat.png"),
    ("'file:///a/%C3%A9.png'", "/a/é.png"), ("~/cat.png", os.path.expanduser("~/cat.png"))])
def test_a_path_may_be_dragged_quoted_or_a_url(typed, found):
    assert typed_path(typed) == found


def test_files_dragged_into_a_question_stand_where_they_were_dropped(tmp_path):
    picture, clip = tmp_path / "my cat.png", tmp_path / "a.wav"
    for path in (picture, clip):
        path.write_bytes(b"")
    line = f"Is '{picture}' as loud as file://{clip} or {tmp_path}/none.png or /tmp?"
    assert take_dragged(line) == (f"Is <image> as loud as <audio> or {tmp_path}/none.png or /tmp?",
                                  [str(picture)], [str(clip)])
    assert take_dragged(str(picture).replace(" ", "\\ ")) == ("<image>", [str(picture)], [])


def test_a_spelled_placeholder_is_text(system, media):
    assert question_parts("What is <audio> in HTML?", [], [])[1] == {"type": "text", "text": "<audio>"}
    one = as_sample([{"role": "user", "content": "What is <audio> in HTML?"}])
    assert one.audios == () and one.messages[0][1] == "What is <audio> in HTML?"
    assert isinstance(system.chat([{"role": "user", "content": "What is <audio> in HTML?"}]), str)
    talk = [{"role": "user", "content": "What is <audio>?"}, {"role": "assistant", "content": "a tag"},
            {"role": "user", "content": [part("audio", media[1]), part("text", "And this <audio>?")]}]
    two = as_sample(talk)
    assert [content.count("<audio>") for _, content in two.messages] == [0, 0, 1, 0]
    assert two.audios == (media[1],) and two.messages[2][1] == "<audio>And this <audio >?"


@pytest.mark.parametrize("limit, cut", [(None, True), (3, True), (4, False)])
def test_an_answer_that_is_cut_says_so(system, capsys, monkeypatch, limit, cut):
    monkeypatch.setattr(system, "stream", lambda messages, **options: iter(
        ["a"] * (3 if limit else system.longest_answer) + [""]))
    Chat(system, max_new_tokens=limit).ask("hi", [], [])
    said = capsys.readouterr()
    assert (f"[stopped after {limit or 12} tokens" in said.err) == cut and "stopped" not in said.out
    Chat(system, True, max_new_tokens=limit).ask("hi", [], [])
    assert json.loads(capsys.readouterr().out)["cut"] == cut


def test_a_system_message_stays_after_a_reset(system):
    chat = Chat(system, True, "Be brief.")
    seen = []
    chat.system = type("Spy", (), {"longest_answer": 9, "stream": lambda self, messages, **o: seen.append(
        messages) or iter(["yes", ""])})()
    chat.ask("hi", [], [])
    chat.messages = []
    chat.ask("hi", [], [])
    assert [m[0] for m in seen] == [{"role": "system", "content": "Be brief."}] * 2
    assert [len(m) for m in seen] == [2, 2]
