"""Chat templates of open weights: the ids are those of `transformers`, the labels are the answers."""

import json
import os
from functools import cache
from pathlib import Path

import foreign
import pytest
from foreign import ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from omni.base.errors import UserError
from omni.data.batch import IGNORE
from omni.data.chat_templates import FAMILIES, OWN, ChatTemplate
from omni.data.tokenizer import Tokenizer

WEIGHTS = Path(os.environ.get("OMNI_WEIGHTS", "nowhere"))
PUBLISHED = {"SmolLM2-135M-Instruct": 49152, "tokenizer-qwen3": 151936, "tokenizer-llama3_1": 128256}
NAMES = list(foreign.FAMILIES)


def published(name: str, reason="needs OMNI_WEIGHTS with this folder"):
    return pytest.param(name, marks=pytest.mark.skipif(not (WEIGHTS / name).is_dir(), reason=reason))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A tokenizer by name: a small one of tests/foreign.py, a published one, or a plain family."""
    @cache
    def load(name: str) -> Tokenizer:
        if name in PUBLISHED:
            return Tokenizer.from_folder(WEIGHTS / name, PUBLISHED[name])
        if name == "own":
            return Tokenizer.train(foreign.TEXTS, 320)
        if name.startswith("plain "):
            small = {"plain chatml": "smol", "plain llama3": "llama3.0"}[name]
            return Tokenizer(foreign.bpe(small).to_str(), ChatTemplate.plain(name.split()[1]), ROWS)
        return Tokenizer.from_folder(foreign.write(tmp_path_factory.mktemp(name), name), ROWS)

    return load


@cache
def reference(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.bpe).from_str(tokenizer.json_text),
                                   bos_token="<|begin_of_text|>", chat_template=tokenizer.template.jinja)


def rendered(tokenizer: Tokenizer, messages) -> list[int]:
    """The ids by `transformers`; an assistant's turn is opened if the last one is not the assistant's."""
    return reference(tokenizer).apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=messages[-1][0] != "assistant", tokenize=True, return_dict=False,
        enable_thinking=False, date_string="26 Jul 2024")


PIECES = ["hello", " there", "\n", "  ", "\t", "é", "e\u0301", "12345", "你好", "don't", "!?", "<think>",
          "</think>", "<tool_response>", "</tool_response>", "<|im", "capital"]
content = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
# Answers are encoded apart from what opens them: one that begins with white space, perhaps when its thoughts
# are taken away, may be split otherwise.
answer = content.filter(lambda text: not any(part[:1].isspace()
                                             for part in (text, text.split("</think>")[-1].lstrip("\n"))))


@st.composite
def talks(draw) -> list[tuple[str, str]]:
    messages = [("system", draw(content))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [("user", draw(content)), ("assistant", draw(answer))]
    if draw(st.integers(0, 5)) == 0:
        messages.append(("assistant", draw(answer)))
    return messages[:-1] if draw(st.booleans()) else messages


@pytest.mark.parametrize("name", [*NAMES, "plain chatml", "plain llama3", "own", *map(published, PUBLISHED)])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_ids_are_those_of_transformers(load, name, data):
    messages = data.draw(talks())
    assert load(name).chat(messages, [], [])[0] == rendered(load(name), messages)


@pytest.mark.parametrize("name", [*NAMES, "own", *map(published, PUBLISHED)])
def test_a_plain_text_is_an_answer(load, name):
    messages = [("assistant", "hello there")]
    tokenizer = load(name)
    ids, labels = tokenizer.chat(messages, [], [])
    assert ids == rendered(tokenizer, messages)
    assert [x for x in labels if x != IGNORE] == [*tokenizer.encode("hello there"), tokenizer.end]


@pytest.mark.parametrize("name", [*NAMES, *map(published, PUBLISHED)])
def test_exactly_the_answers_and_their_ends_are_labelled(load, name):
    tokenizer = load(name)
    messages = [("system", "be kind"), ("user", "what"), ("assistant", "Paris"), ("user", "hello"),
                ("assistant", "there 12"), ("user", "x"), ("assistant", "y")]
    ids, labels = tokenizer.chat(messages, [], [], untrained=(4,))
    trained = [i for i, label in enumerate(labels) if label != IGNORE]
    assert [labels[i] for i in trained] == [*tokenizer.encode("Paris"), tokenizer.end,
                                            *tokenizer.encode("y"), tokenizer.end]
    assert all(ids[i + 1] == labels[i] for i in trained)


@pytest.mark.parametrize("name", [*NAMES, *map(published, PUBLISHED)])
def test_a_prompt_is_the_start_of_the_talk_with_its_answer(load, name):
    talk = [("user", "what is it"), ("assistant", "Paris")]
    (prompt, labels), (whole, _) = (load(name).chat(messages, [], []) for messages in (talk[:1], talk))
    assert whole[:len(prompt)] == prompt and set(labels) == {IGNORE}
    assert whole[len(prompt):][:-load(name).closing] == load(name).encode("Paris")


def test_thoughts_are_trained_on_and_the_empty_block_is_not(load):
    tokenizer = load("qwen3")

    def trained(text: str) -> str:
        labels = tokenizer.chat([("user", "hello"), ("assistant", text)], [], [])[1]
        return tokenizer.decode(label for label in labels if label != IGNORE)

    assert trained("Paris") == "Paris"
    assert trained("<think>\none\n</think>\n\nParis") == "<think>\none\n</think>\n\nParis"


@pytest.mark.parametrize("name", [*NAMES, *map(published, PUBLISHED)])
def test_media_stand_beyond_the_embeddings_and_split_the_text(load, name):
    tokenizer = load(name)
    rows, encode = tokenizer.rows, tokenizer.encode
    assert (tokenizer.image, tokenizer.audio) == (rows, rows + 1)
    talk = [("user", "<image>what<audio> is<image>"), ("assistant", "Paris")]
    ids, labels = tokenizer.chat(talk, [2, 1], [3])
    start = ids.index(rows)
    middle = [rows] * 2 + encode("what") + [rows + 1] * 3 + encode(" is") + [rows, tokenizer.end]
    assert ids[start:start + len(middle)] == middle and not {rows, rows + 1} & {*labels}
    given = tokenizer.template.given("user")
    assert ids[:start][-len(encode(given)):] == encode(given)


@pytest.mark.parametrize("name", [*NAMES, "own"])
def test_special_tokens_written_in_a_text_stay_text(load, name):
    tokenizer = load(name)
    content = "a" + "".join(tokenizer.ids) + "b"
    ids = tokenizer.encode(content)
    assert not {*ids} & {*tokenizer.ids.values()} and tokenizer.decode(ids) == content


@pytest.mark.parametrize("name", [*NAMES, "own"])
@given(messages=talks())
@settings(deadline=None, max_examples=60)
def test_no_talk_has_more_tokens_than_the_bound(load, name, messages):
    turns = [text for message in messages for text in message]
    ids, _ = load(name).chat(messages, [], [])
    prompt = messages[-1][0] != "assistant"  # the bound is for whole talks
    assert len(ids) <= load(name).most_tokens(turns + ["assistant", ""] * prompt)


def test_the_bound_holds_where_nfc_makes_a_text_longer(load):
    tokenizer, text = load("qwen3"), "\U0001d160" * 40  # a note: 4 bytes, by NFC three characters of 4 bytes
    ids, _ = tokenizer.chat([("user", text), ("assistant", "")], [], [])
    assert len(text.encode()) + 100 < len(ids) <= tokenizer.most_tokens(["user", text, "assistant", ""])


def test_the_variants_are_read_from_the_template(load):
    variants = {name: load(name).template for name in NAMES}
    assert {name: (t.family, t.default_system, t.thinks) for name, t in variants.items()} == {
        "smol": ("chatml", foreign.SMOL_SYSTEM, False), "qwen3": ("chatml", None, True),
        "qwen2.5": ("chatml", "You help.\nBe kind.", False),
        "llama3.0": ("llama3", None, False), "llama3.1": ("llama3", "", False)}
    assert variants["llama3.1"].preamble == ("Cutting Knowledge Date: December 2023\n"
                                             "Today Date: 26 Jul 2024\n\n")


@pytest.mark.parametrize("config, jinja, wanted", [
    ({"chat_template": foreign.SMOL}, None, foreign.SMOL),
    ({"chat_template": [{"name": "tools", "template": foreign.QWEN3},
                        {"name": "default", "template": foreign.SMOL}]}, None, foreign.SMOL),
    ({"chat_template": foreign.SMOL}, foreign.QWEN25, foreign.QWEN25),  # a file of its own counts more
    ({}, None, ChatTemplate.plain("chatml").jinja),
    ({}, OWN.jinja, OWN.jinja)])
def test_where_the_template_is_found(config, jinja, wanted):
    assert ChatTemplate.recognise(config, jinja, foreign.CHATML_TOKENS.__contains__).jinja == wanted


@pytest.mark.parametrize("config, reason", [
    ({"chat_template": "[INST] {{ messages[0].content }} [/INST]"}, "neither ChatML"),
    ({"chat_template": 3}, "must be a text"), ({"chat_template": [{"name": "rag"}]}, "must be a text"),
    ({"chat_template": "{{ bos_token }}" + foreign.SMOL}, "bos_token"),
    ({"chat_template": foreign.SMOL.replace("m['content']", "m['content'] | trim")}, "trim"),
    ({"chat_template": foreign.SMOL + "<think>"}, "<think>"),
    ({"chat_template": foreign.LLAMA30 + "<think>"}, "<think>"), ({}, "no chat_template")])
def test_a_template_that_is_not_supported_is_refused(config, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        ChatTemplate.recognise(config, None, lambda token: False)
    assert "chat_template" in str(raised.value)


@pytest.mark.parametrize("template", [OWN, *map(ChatTemplate.plain, FAMILIES),
                                      ChatTemplate("llama3", "x", "", "Cutting", False)])
def test_a_template_is_stored_and_read_again(template):
    stored = json.loads(json.dumps(template.to_dict()))
    assert ChatTemplate.from_dict(stored) == template
    for bad in (None, {}, stored | {"family": "alpaca"}, stored | {"thinks": 1}, stored | {"jinja": None},
                stored | {"more": 1}):
        with pytest.raises(ValueError, match="chat template"):
            ChatTemplate.from_dict(bad)


@pytest.mark.parametrize("name", [*NAMES, "own"])
def test_a_tokenizer_is_stored_and_read_again(load, name):
    tokenizer, talk = load(name), [("user", "hello<image>"), ("assistant", "there")]
    stored = json.loads(json.dumps(tokenizer.content()))
    again = Tokenizer.from_content(stored)
    assert again.content() == stored and again.ends == tokenizer.ends
    assert again.chat(talk, [2], []) == tokenizer.chat(talk, [2], [])
    for bad in (None, 3, {}, stored | {"rows": "9"}, stored | {"ends": [ROWS + 2]}, stored | {"ends": ["x"]},
                stored | {"template": {}}, stored | {"more": 1}):
        with pytest.raises(ValueError):
            Tokenizer.from_content(bad)


def test_an_older_checkpoint_holds_the_json_text_alone(load):
    assert Tokenizer.from_content(load("own").json_text).content() == load("own").content()


def test_a_folder_gives_the_tokenizer_its_ends_and_its_config(tmp_path):
    tokenizer = Tokenizer.from_folder(foreign.write(tmp_path, "qwen3", jinja_file=True), ROWS, [260, 340])
    assert tokenizer.template.thinks and tokenizer.ends == (tokenizer.end, 260, 340)
    assert json.loads(tokenizer.config_text) == {"bos_token": "<|endoftext|>"}
    unfilled = tokenizer.unfilled(ROWS).tolist()
    assert unfilled == [i >= len(tokenizer) for i in range(ROWS)] and any(unfilled)
    assert tokenizer.unfilled(len(tokenizer)) is None


@pytest.mark.parametrize("file, text, wanted", [
    ("tokenizer.json", None, "tokenizer.json is missing.*save_pretrained"),
    ("tokenizer.json", "{}", "tokenizer.json: no usable tokenizer"),
    ("tokenizer_config.json", "{", "tokenizer_config.json: "),
    ("tokenizer_config.json", "[]", "tokenizer_config.json: not a JSON object"),
    ("tokenizer_config.json", '{"chat_template": "x"}', "tokenizer_config.json: chat_template is neither"),
    ("chat_template.jinja", "x", "chat_template.jinja: chat_template is neither"),
    ("chat_template.jinja", b"\xff", "chat_template.jinja: can't be read"),
    ("chat_template.jinja", foreign.LLAMA30, "tokenizer.json: .*lacks the special tokens.*eot_id")])
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, file, text, wanted):
    path = foreign.write(tmp_path, "smol") / file
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=wanted) as raised:
        Tokenizer.from_folder(tmp_path, ROWS)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_a_tokenizer_with_more_tokens_than_embeddings_or_other_pieces_is_refused(tmp_path):
    foreign.write(tmp_path, "smol")
    with pytest.raises(UserError, match="tokens, but only 100 embeddings"):
        Tokenizer.from_folder(tmp_path, 100)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": None}))
    with pytest.raises(UserError, match="not a byte-level BPE"):
        Tokenizer.from_folder(tmp_path, ROWS)
