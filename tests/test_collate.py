"""Samples become a right-padded batch; what is too long loses its front, never its answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.data.batch import IGNORE
from omni.data.collate import Collator
from omni.data.loader import Schedule
from omni.data.sample import Sample, flat
from omni.data.tokenizer import Tokenizer

TOK = Tokenizer.train(["the cat is red and the dog is blue"] * 3, 300)


class Reader:
    """Media without files: a picture is zeros, a clip's name says how many mel frames it has."""

    def pixels(self, path, take=0):
        return torch.zeros(3, 32, 32)

    def mel(self, path, take=0):
        return torch.ones(int(path), 80)


def collator(max_length: int, image_tokens: int = 4) -> Collator:
    return Collator(TOK, Reader(), image_tokens, lambda frames: -(-frames // 8), max_length)


def said(batch, row: int) -> str:
    return TOK.decode(batch.labels[row][batch.labels[row] != IGNORE])


def test_rows_are_padded_to_the_right_and_media_stand_in_order():
    samples = [Sample(("user", "<audio>a<image>b<audio>", "assistant", "red"), ("p",), ("17", "8")),
               Sample(("user", "the cat", "assistant", "blue dog"))]
    batch = collator(100)(samples)
    for b, length in enumerate(batch.lengths):
        assert (batch.input_ids[b, length:] == TOK.pad).all() and (batch.labels[b, length:] == IGNORE).all()
        assert (batch.input_ids[b, :length] != TOK.pad).all()
    assert batch.mels.shape == (2, 17, 80) and batch.mel_lengths.tolist() == [17, 8]
    assert batch.mels[0].all() and batch.mels[1, :8].all() and not batch.mels[1, 8:].any()
    assert batch.pixels.shape == (1, 3, 32, 32)
    assert (batch.input_ids == TOK.audio).sum(1).tolist() == [4, 0]
    assert (batch.input_ids == TOK.image).sum(1).tolist() == [4, 0]
    assert [said(batch, b) for b in (0, 1)] == ["red", "blue dog"]


def test_a_batch_without_media_has_none():
    batch = collator(100)([Sample(("user", "the cat", "assistant", "red"))])
    assert (batch.pixels, batch.mels, batch.mel_lengths, batch.image_features, batch.audio_features) == (None,
                                                                                                         ) * 5


@given(st.integers(0, 60), st.integers(1, 8), st.integers(0, 2), st.integers(24, 60))
@settings(deadline=None)
def test_what_is_too_long_loses_its_front_and_never_its_answer_or_media(words, answer, pictures, limit):
    sample = Sample(("user", "<image>" * pictures + "cat " * words, "assistant", "red " * answer),
                    ("p",) * pictures)
    batch = collator(limit)([sample])
    assert batch.input_ids.shape[1] <= limit
    assert said(batch, 0) == "red " * answer and (batch.input_ids == TOK.image).sum() == 4 * pictures
    assert batch.labels[0, -2] == TOK.end


@given(st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_a_label_is_the_token_that_follows_also_where_text_was_cut(words, plain):
    text = " ".join(f"{i}" for i in range(words))
    turns = (("assistant", text),) if plain else (("user", text), ("assistant", text), ("user", "x"),
                                                 ("assistant", "red"))
    batch = collator(24)([Sample(flat(turns))])
    ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    assert all(label in (IGNORE, after) for label, after in zip(labels, ids[1:], strict=False))
    assert labels[-1] == IGNORE and len(ids) <= 24


def test_media_too_large_for_max_length_do_not_eat_the_answer():
    sample = Sample(("user", "<image>cat", "assistant", "red"), ("p",))
    assert said(collator(24, image_tokens=40)([sample]), 0) == "red"


@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 4))
def test_the_steps_of_a_schedule_deal_out_every_draw_once(samples, batch, epochs):
    schedule = Schedule(samples, batch, epochs)
    draws = [list(schedule.draws(step)) for step in range(schedule.steps)]
    assert [k for step in draws for k in step] == list(range(samples * epochs))
    assert all(1 <= len(step) <= batch for step in draws)
    per_epoch = schedule.steps_per_epoch
    assert all(sum(map(len, draws[e * per_epoch:(e + 1) * per_epoch])) == samples for e in range(epochs))


@pytest.mark.parametrize("prompt_only, wanted", [(True, ""), (False, "red")])
def test_a_prompt_alone_holds_no_answer(prompt_only, wanted):
    sample = Sample(("user", "the cat", "assistant", "red"))
    batch = collator(100)([sample], prompt_only=prompt_only)
    assert said(batch, 0) == wanted and ("red" in TOK.decode(batch.input_ids[0])) != prompt_only
