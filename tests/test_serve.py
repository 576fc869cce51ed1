"""The server: answers as in a chat, OpenAI's format with OpenAI's client, the command."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, assert_user_error
from serving import MODEL, clip, picture, post, question, raw, saved_system, serving
from serving import head as request_head

import sft_omni
from omni import OmniModel
from omni.base.errors import UserError
from omni.data.question import media_part
from omni.serve.__main__ import main as serve_main
from omni.serve.about import about
from omni.serve.protocol import StopText


@pytest.fixture(scope="module")
def saved(toy, tmp_path_factory) -> str:
    return saved_system(toy, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def system(saved) -> OmniModel:
    return OmniModel.load(saved, device="cpu")


@pytest.fixture(scope="module")
def server(system):
    with serving(system) as running:
        yield running


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_address[1]}/v1", api_key="none",
                       max_retries=0) as made:
        yield made


@pytest.fixture
def media(toy) -> tuple[str, str]:
    data = toy.root / "data"
    return str(data / "image_text" / "val_0.png"), str(data / "audio_text" / "val_3.ogg")


def test_openais_client_gets_the_answer_of_a_chat(client, system, media):
    shown, heard = media
    for given, parts in (([], ["What is 1 plus 1?"]),
                         ([picture(shown)], [media_part("<image>", shown), "What color?"]),
                         ([clip(heard)], [media_part("<audio>", heard), "Transcribe."]),
                         ([picture(shown), clip(heard)],
                          [media_part("<image>", shown), media_part("<audio>", heard), "What?"])):
        wanted = system.chat(question(*parts)["messages"])
        answer = client.chat.completions.create(model=MODEL, **question(*given, parts[-1]))
        assert answer.choices[0].message.content == wanted and answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason in ("stop", "length") and answer.model == MODEL
        events = list(client.chat.completions.create(model=MODEL, stream=True, **question(*given, parts[-1]),
                                                     stream_options={"include_usage": True}))
        pieces = [event.choices[0].delta.content or "" for event in events[:-1]]
        assert "".join(pieces) == wanted and events[-2].choices[0].finish_reason
        usage = events[-1].usage
        assert usage == answer.usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        details = usage.prompt_tokens_details
        images = system.image_tokens if shown in str(parts) else 0
        assert details.image_tokens == images and (details.audio_tokens > 0) == (heard in str(parts))
        assert details.text_tokens + images + details.audio_tokens == usage.prompt_tokens
        assert events[-1].timings["first_token_s"] > 0
    assert len({event.id for event in events}) == 1


def test_a_conversation_with_media_in_several_turns(client, system, media):
    shown, heard = media
    ours = [{"role": "system", "content": "Be brief."},
            *question(media_part("<image>", shown), "?")["messages"],
            {"role": "assistant", "content": "red"}, *question(media_part("<audio>", heard))["messages"]]
    theirs = [{"role": "developer", "content": "Be brief."}, *question(picture(shown), "?")["messages"],
              {"role": "assistant", "content": "red"}, *question(clip(heard))["messages"]]
    answer = client.chat.completions.create(model=MODEL, messages=theirs)
    assert answer.choices[0].message.content == system.chat(ours)


def test_length_temperature_seed_and_stop(client, system):
    ask = question("What is 1 plus 1?", model=MODEL)
    short = client.chat.completions.create(**ask, max_tokens=1)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1
    drawn = [client.chat.completions.create(**ask, temperature=2, seed=seed, max_completion_tokens=20)
             for seed in (1, 1, 2)]
    texts = [answer.choices[0].message.content for answer in drawn]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == system.chat(ask["messages"], temperature=2.0, seed=1, max_new_tokens=20)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    for stop in (whole[2:4], [whole[3:], "zzz"]):
        cut = client.chat.completions.create(**ask, stop=stop)
        first = stop if isinstance(stop, str) else stop[0]
        assert cut.choices[0].message.content == whole[:whole.index(first)]
        assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_stop_text_is_found_across_pieces(size):
    for text, stops, wanted in (("one ENDED", ["END"], "one "), ("aab", ["ab"], "a"), ("xyz", [], "xyz"),
                                ("EN EN", ["END"], "EN EN"), ("ababc", ["abc", "zz"], "ab"),
                                ("b a", ["a", "b"], "")):
        stop, sent = StopText(stops), ""
        for start in range(0, len(text), size):
            sent += stop.add(text[start:start + size])
            if stop.found:
                break
        assert sent + stop.held == wanted, text


def test_models_and_errors_are_those_that_openais_client_expects(client):
    import openai
    assert [model.id for model in client.models.list()] == [MODEL] == [client.models.retrieve(MODEL).id]
    ask = question("hi")
    for error, options in ((openai.NotFoundError, {"model": "gpt-9", **ask}),
                           (openai.BadRequestError, {"model": MODEL, "messages": []}),
                           (openai.BadRequestError, {"model": MODEL, **ask, "n": 2}),
                           (openai.BadRequestError, {"model": MODEL, **question(picture(b"no picture"))})):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**options)
        assert caught.value.body["type"] == "invalid_request_error" and caught.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize("change, param, word", [
    ({"messages": None}, "messages", "list"), ({"messages": "hi"}, "messages", "list"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0]", "role"),
    ({"messages": [7]}, "messages[0]", "object"),
    (question(), "messages[0].content", "parts"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "parts"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]", "image_url"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user's"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0]", "tool_calls"),
    (question("a <image> b"), "messages[0].content[0]", "<image>"),
    (question("half \ud83d"), "messages[0].content[0]", "surrogate"),
    (question("x" * 100_001), "messages", "100,000"), ({"temperature": 3}, "temperature", "0 to 2"),
    ({"temperature": "hot"}, "temperature", "number"), ({"temperature": True}, "temperature", "number"),
    ({"top_p": -0.1}, "top_p", "0 to 1"), ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": 1.5}, "max_tokens", "whole"), ({"seed": 2 ** 70}, "seed", "whole"),
    ({"stream": "yes"}, "stream", "true"), ({"stop": [""]}, "stop", ""), ({"stop": ["a"] * 5}, "stop", "4"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"), ({"top_k": 3}, "top_k", "unknown"),
    ({"n": 2}, "n", "not supported"), ({"stream_options": 1}, "stream_options", "object")])
def test_a_request_that_can_not_be_answered_says_why(server, change, param, word):
    status, answer = post(server, {**question("hi"), **change})
    assert status == 400 and answer["error"]["param"] == param, answer
    assert word in answer["error"]["message"] and "\n" not in answer["error"]["message"]


def test_parameters_that_ask_for_nothing_are_accepted(server):
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "tools": None,
               "response_format": {"type": "text"}, "user": "me", "temperature": None, "stop": None}
    assert post(server, {**question("hi"), **neutral})[0] == 200


def test_media_longer_than_the_system_can_read_are_a_400(server, system, media, monkeypatch):
    monkeypatch.setattr(system, "config", dataclasses.replace(system.config, max_length=64))
    status, answer = post(server, question(*[picture(media[0])] * 32))
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_what_it_is_and_held_out_samples_of_its_run(toy, tmp_path):
    sft_omni.main(["--config", toy.write(tmp_path, num_epochs=1, eval_samples=4)])
    ckpt = str(tmp_path / "out" / "omni_final.pt")
    system = OmniModel.load(ckpt, device="cpu")
    facts = about(system, ckpt)
    with serving(system, facts) as server:
        shown = json.loads(raw(server, request_head(server, "GET /about HTTP/1.1"))[1])
        assert shown["model"] == "out" and [part["name"] for part in shown["parts"]][0] == "Thinker"
        parameters = sum(p.numel() for p in system.parameters())
        assert sum(part["parameters"] for part in shown["parts"]) == parameters
        assert {"image_qa", "audio_wer"} <= {figure["name"] for figure in shown["figures"]}
        assert "paths" not in shown and str(toy.root) not in json.dumps(shown)
        kinds = {(bool(s["images"]), bool(s["audios"])) for s in shown["samples"]}
        assert kinds == {(False, False), (True, False), (False, True), (True, True)}
        for number, paths in enumerate(facts.paths):
            for index, path in enumerate(paths):
                line = f"GET /samples/{number}/{index} HTTP/1.1"
                assert raw(server, request_head(server, line)) == (200, Path(path).read_bytes())
        for place in (f"{len(facts.paths)}/0", "0/9", "-1/0", "0/", "00000000000000/0", "%30/0", "0/0/.."):
            assert raw(server, request_head(server, f"GET /samples/{place} HTTP/1.1"))[0] == 404
    (tmp_path / "out" / "metrics.jsonl").write_text("[]\n")
    assert about(system, ckpt).figures == []


def test_the_command_serves_until_it_is_stopped(saved, media, command, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "omni.serve", "--ckpt", saved, "--port", "0"], cwd=ROOT,
                               env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        first = process.stdout.readline() + process.stdout.readline()
        address = re.search(r"open (http://127\.0\.0\.1:\d+/) ", first)[1]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert [*tmp_path.glob("omni-serve-*")]
        body, kind = json.dumps(question(picture(media[0]))).encode(), {"Content-Type": "application/json"}
        ask = urllib.request.Request(f"{address}v1/chat/completions", body, kind)
        with urllib.request.urlopen(ask, timeout=60) as response:
            assert json.load(response)["choices"][0]["message"]["role"] == "assistant"
        port = address.rstrip("/").rpartition(":")[2]
        assert_user_error(command("-m", "omni.serve", "--ckpt", saved, "--port", port), "choose another port")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and process.stderr.read() == ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
    assert children and not any(os.path.exists(f"/proc/{child}") for child in children)
    assert not [*tmp_path.glob("omni-serve-*")]


def test_a_server_that_others_could_reach_wants_a_token(command):
    assert_user_error(command("-m", "omni.serve", "--ckpt", "nowhere.pt", "--host", "0.0.0.0"), "--token")


@pytest.mark.parametrize("arguments, word", [
    (["--host", "::"], "--token"), (["--host", "192.0.2.1"], "--token"),
    (["--host", "0.0.0.0", "--token", "short"], "16"), (["--token", "sixteen letters "], "letters"),
    (["--port", "65536"], "--port"), ([], "nowhere.pt")])
def test_unusable_arguments_are_a_user_error(arguments, word):
    with pytest.raises(UserError, match=word):
        serve_main(["--ckpt", "nowhere.pt", *arguments])
