"""Samples become a packed batch. A long prompt loses its start; the last answer is never cut."""

import foreign
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rows

from omni.data.batch import IGNORE
from omni.data.collate import Collator
from omni.data.loader import Schedule
from omni.data.sample import Sample, flat
from omni.data.tokenizer import Tokenizer

FOREIGN = {name: foreign.tokenizer(name) for name in foreign.FAMILIES}
TOK = Tokenizer.train(["the cat is red and the dog is blue"] * 3, 300)


class Reader:
    """Media without files: an image is zeros, a clip's name says how many mel frames it has."""

    def pixels(self, path, take=0):
        return torch.zeros(3, 32, 32)

    def mel(self, path, take=0):
        return torch.ones(int(path), 80)


def collator(max_length: int, image_tokens: int = 4) -> Collator:
    return Collator(TOK, Reader(), image_tokens, lambda frames: -(-frames // 8), max_length)


def answer_of(batch, row: int) -> str:
    return TOK.decode(label for label in rows(batch)[row][1] if label != IGNORE)


class Features:
    """Frozen features of media like those of `Reader`."""

    encoders = {"vision", "audio"}

    def holds(self, media):
        return True

    def image(self, path, take):
        return torch.full((16, 6), float(path))

    def audio(self, path, take):
        return torch.full((-(-int(path) // 8), 5), float(path))


def test_rows_and_media_keep_their_order():
    samples = [Sample(("user", "<audio>a<image>b<audio>", "assistant", "red"), ("p",), ("17", "8")),
               Sample(("user", "the cat", "assistant", "blue dog"))]
    batch = collator(100)(samples)
    (ids, _), (plain, _) = rows(batch)
    assert (ids.count(TOK.audio), ids.count(TOK.image)) == (4, 4) and TOK.audio not in plain
    assert batch.ids[batch.audio_tokens].tolist() == [TOK.audio] * 4
    assert batch.ids[batch.image_tokens].tolist() == [TOK.image] * 4
    assert batch.mels.shape == (2, 17, 80) and batch.mel_lengths.tolist() == [17, 8]
    assert batch.mels[0].all() and batch.mels[1, :8].all() and not batch.mels[1, 8:].any()
    assert batch.audio_frames.tolist() == [0, 1, 2, 3]  # three features of the first clip, one of the second
    assert batch.pixels.shape == (1, 3, 32, 32)
    assert [answer_of(batch, row) for row in (0, 1)] == ["red", "blue dog"]


def test_frozen_features_are_padded_to_a_bucket_with_their_tokens():
    samples = [Sample(("user", "<audio>a<image>b<audio>", "assistant", "red"), ("1",), ("17", "8")),
               Sample(("user", "the <image>cat", "assistant", "blue dog"), ("2",))]
    collate = Collator(TOK, Reader(), 4, lambda frames: -(-frames // 8), 100, Features())
    batch = collate(samples)
    assert batch.pixels is batch.mels is batch.mel_lengths is batch.audio_frames is None
    assert batch.image_features.shape == (4, 16, 6) and batch.audio_features.shape == (32, 5)
    assert batch.image_features[:2, 0, 0].tolist() == [1, 2] and not batch.image_features[2:].any()
    assert batch.audio_features[:4, 0].tolist() == [17, 17, 17, 8] and not batch.audio_features[4:].any()
    for tokens, placeholder, true in ((batch.image_tokens, TOK.image, 8), (batch.audio_tokens, TOK.audio, 4)):
        assert batch.ids[tokens[:true]].tolist() == [placeholder] * true
        assert (tokens[true:] == len(batch.ids) - 1).all() and int(batch.ids[-1]) == TOK.pad
    assert (len(batch.image_tokens), len(batch.audio_tokens)) == (16, 32)


def test_a_batch_without_media_has_none():
    batch = collator(100)([Sample(("user", "the cat", "assistant", "red"))])
    assert batch.pixels is batch.mels is batch.mel_lengths is batch.audio_frames is None
    assert batch.image_features is batch.audio_features is None
    assert len(batch.image_tokens) == len(batch.audio_tokens) == 0


@given(st.integers(0, 60), st.integers(1, 8), st.integers(0, 2), st.integers(24, 60))
@settings(deadline=None)
def test_a_long_prompt_loses_its_start_but_never_its_answer_or_media(words, answer, images, limit):
    sample = Sample(("user", "<image>" * images + "cat " * words, "assistant", "red " * answer),
                    ("p",) * images)
    batch = collator(limit)([sample])
    (ids, labels), = rows(batch)
    assert len(ids) <= limit
    assert answer_of(batch, 0) == "red " * answer and ids.count(TOK.image) == 4 * images
    assert labels[-2] == TOK.end


@given(st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_a_label_is_the_next_token_also_where_text_was_cut(words, plain):
    text = " ".join(f"{i}" for i in range(words))
    turns = (("assistant", text),) if plain else (("user", text), ("assistant", text), ("user", "x"),
                                                 ("assistant", "red"))
    batch = collator(24)([Sample(flat(turns))])
    (ids, labels), = rows(batch)
    assert all(label in (IGNORE, after) for label, after in zip(labels, ids[1:], strict=False))
    assert labels[-1] == IGNORE and len(ids) <= 24


@pytest.mark.parametrize("name", foreign.FAMILIES)
@given(words=st.integers(0, 60), answer=st.integers(1, 8), images=st.integers(0, 2), system=st.booleans(),
       limit=st.integers(16, 150))
@settings(deadline=None, max_examples=40)
def test_with_open_weights_what_opens_and_closes_a_prompt_stays(name, words, answer, images, system, limit):
    tok = FOREIGN[name]
    turns = [("system", "be kind")] * system + [("user", "<image>" * images + "cat " * words),
                                                ("assistant", "red" * answer)]
    collate = Collator(tok, Reader(), 4, None, limit)
    whole, _ = tok.chat(turns, [4] * images, [])
    too_long, reason = collate.overlong(Sample(flat(turns), ("p",) * images), {})
    assert too_long == (len(whole) if len(whole) > limit else 0)
    if reason:
        assert ("exceed max_length" if images else "its answer alone exceeds max_length") in reason
        return
    ids, labels = collate.fit(*tok.chat(turns, [4] * images, []))
    last = len(whole) - whole[::-1].index(tok.opens_answer) - 1 - tok.closing
    assert len(ids) <= limit and ids.count(tok.image) == 4 * images
    assert ids[:tok.lead(whole)] == whole[:tok.lead(whole)] and ids[last - len(whole):] == whole[last:]
    assert [label for label in labels if label != IGNORE] == [*tok.encode("red" * answer), tok.end]


@pytest.mark.parametrize("name", foreign.FAMILIES)
def test_with_open_weights_a_plain_text_is_cut_behind_what_opens_it(name):
    tok, turns = FOREIGN[name], [("assistant", "red" * 90)]
    whole, _ = tok.chat(turns, [], [])
    lead = len(whole) - len(tok.encode("red" * 90)) - tok.closing
    collate = Collator(tok, Reader(), 4, None, lead + 20)
    ids, _ = collate.fit(*tok.chat(turns, [], []))
    assert ids == whole[:lead] + whole[-20:]
    assert collate.overlong(Sample(flat(turns)), {}) == (len(whole), None)
    assert Collator(tok, Reader(), 4, None, lead - 1).overlong(Sample(flat(turns)), {})[1]


@pytest.mark.parametrize("name, kept", [
    ("smol", "system\n" + foreign.SMOL_SYSTEM + "\nuser\n"), ("qwen3", "user\n"), ("llama3.0", "user\n\n"),
    ("llama3.1", "system\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nuser\n\n")])
def test_the_system_turn_that_a_template_adds_is_not_cut(name, kept):
    tok = FOREIGN[name]
    ids, _ = tok.chat([("user", "cat"), ("assistant", "red")], [], [])
    assert tok.decode(ids[:tok.lead(ids)]) == kept
    assert tok.lead(tok.chat([("user", "\n\ncat"), ("assistant", "red")], [], [])[0]) > tok.lead(ids) - 2


def test_media_larger_than_max_length_do_not_cut_the_answer():
    sample = Sample(("user", "<image>cat", "assistant", "red"), ("p",))
    assert answer_of(collator(24, image_tokens=40)([sample]), 0) == "red"


@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 4))
def test_the_steps_of_a_schedule_have_every_draw_once(samples, batch, epochs):
    schedule = Schedule(samples, batch, epochs)
    draws = [list(schedule.draws(step)) for step in range(schedule.steps)]
    assert [k for step in draws for k in step] == list(range(samples * epochs))
    assert all(1 <= len(step) <= batch for step in draws)
    per_epoch = schedule.steps_per_epoch
    assert all(sum(map(len, draws[e * per_epoch:(e + 1) * per_epoch])) == samples for e in range(epochs))


@pytest.mark.parametrize("prompts, wanted", [(True, ""), (False, "red")])
def test_a_prompt_holds_no_answer(prompts, wanted):
    sample = Sample(("user", "the cat", "assistant", "red"))
    batch = collator(100)([sample], prompts=prompts)
    assert answer_of(batch, 0) == wanted and ("red" in TOK.decode(batch.ids)) != prompts
