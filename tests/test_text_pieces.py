"""Plain text that is longer than max_length is cut into pieces, and all of it is trained on."""

import json

import foreign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rows
from test_collate import FOREIGN, TOK, Reader
from test_run import train

from omni import inspect
from omni.data import skipped
from omni.data.batch import IGNORE
from omni.data.collate import Collator
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.data.text_pieces import pieces


@pytest.mark.parametrize("name", ["own", *foreign.FAMILIES])
@given(text=st.text(st.sampled_from("the cat 12 \n\t.é你好🙂"), min_size=1, max_size=300),
       room=st.integers(8, 40))
@settings(deadline=None, max_examples=60)
def test_the_pieces_are_the_text_and_fit(name, text, room):
    tokenizer = TOK if name == "own" else FOREIGN[name]
    found = pieces(text, tokenizer, room)
    assert "".join(found) == text and all(found)
    assert all(len(tokenizer.encode(piece)) <= room for piece in found)
    assert len(found) <= 1 + 4 * len(tokenizer.encode(text)) // room


def test_pieces_end_before_a_word():
    found = pieces("the cat is red and the dog is blue " * 20, TOK, 30)
    assert len(found) > 5 and all(piece.startswith(" ") and not piece.endswith(" ") for piece in found[1:-1])
    assert sum(len(TOK.encode(piece)) for piece in found) == len(TOK.encode("".join(found)))


@pytest.mark.parametrize("name", ["own", *foreign.FAMILIES])
def test_every_token_is_trained_and_only_the_last_piece_ends(name):
    tokenizer = TOK if name == "own" else FOREIGN[name]
    text = "the cat is red and the dog is blue. " * 20
    limit = 60 + len(tokenizer.chat((("assistant", ""),), [], [])[0])
    collate = Collator(tokenizer, Reader(), 4, None, limit)
    samples = collate.pieces(Sample(("assistant", text)))
    assert len(samples) > 2 and [s.continues for s in samples] == [True] * (len(samples) - 1) + [False]
    trained = []
    for (ids, labels), sample in zip(rows(collate(samples)), samples, strict=False):
        assert len(ids) <= limit and (tokenizer.end in labels) != sample.continues
        trained += [label for label in labels if label not in (IGNORE, tokenizer.end)]
    assert tokenizer.decode(trained).strip().replace(" ", "") == text.strip().replace(" ", "")


def test_a_short_text_and_a_conversation_stay_as_they_are():
    collate = Collator(TOK, Reader(), 4, None, 60)
    for turns in (("assistant", "the cat"), ("user", "the cat " * 90, "assistant", "red")):
        assert collate.pieces(Sample(turns)) == [Sample(turns)]


def test_a_run_says_how_many_pieces_there_are_and_trains_them(toy, tmp_path, capsys):
    texts = [{"text": f"number {n}: " + "It is 1 plus 2. " * 60} for n in range(3)] + [{"text": "short"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    source = {"weight": 1, "train": str(tmp_path / "t.jsonl"), "val": None}
    train(toy, tmp_path, data_mix={"texts": source}, num_epochs=1, max_length=128, samples_per_epoch=None)
    said = capsys.readouterr().out
    assert "source texts: 3 plain texts are longer than max_length: they are cut into" in said
    assert "start of their prompt" not in said and "samples skipped" not in said


def test_the_max_length_that_holds_99_percent_is_named():
    collate = Collator(TOK, Reader(), 4, None, 40)
    samples = [Sample(("user", "the cat", "assistant", "red " * n)) for n in (*[2] * 150, 90, 60, 60)]
    mix = Mix(train={"a": samples}, val={"a": []}, without_val={"a"}, files={"a.train": "a.jsonl"})
    skipped.drop_overlong(mix, collate, {})
    lengths = [len(TOK.chat(s.messages, [], [])[0]) for s in samples]
    wanted = -(-sorted(lengths)[-2] // 32) * 32
    assert f'source a: "max_length": {wanted} holds 99 % of its samples whole' in skipped.lines(mix)
    assert "source a: 3 samples skipped; 3x its answer alone exceeds max_length" in skipped.lines(mix)
    with pytest.raises(skipped.UserError, match=f'"max_length": {wanted} holds 99 %.*; fix them or raise'):
        skipped.check(mix, 0.001, None)


def test_inspect_says_what_a_run_does_with_the_same_words(toy, tmp_path, capsys):
    rows = [{"question": "What?", "answer": "It is 1. " * n} for n in (*[1] * 9, 60, 60)]
    rows += [{"question": "What is it? " * 60, "answer": "It."}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"weight": 1, "train": str(tmp_path / "m.jsonl"), "val": None}
    config = toy.write(tmp_path, max_length=128, data_mix={"m": source})
    inspect.main([str(tmp_path / "m.jsonl"), "--config", config])
    looked = capsys.readouterr().out
    with pytest.raises(skipped.UserError) as refused:
        train(toy, tmp_path, data_mix={"m": source}, max_length=128)
    train(toy, tmp_path, data_mix={"m": source}, max_length=128, num_epochs=1, max_skipped=0.5)
    said = [line for line in capsys.readouterr().out.splitlines() if "max_length" in line]
    assert len({*said}) == 3 and all(f"problem: {line}" in looked for line in said)
    assert "2x its answer alone exceeds max_length" in looked
    assert "a run refuses this source: 2 of 12 samples" in looked and "2 of 12 samples" in str(refused.value)
    remedy = int(looked.split('"max_length": ')[1].split()[0])
    capsys.readouterr()
    inspect.main([str(tmp_path / "m.jsonl"), "--config", toy.write(tmp_path, max_length=remedy)])
    assert capsys.readouterr().out.endswith("no problems\n")
