"""Stage A's pictures that are told in words; how a stage is stopped and continued."""

import json
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pretrain import TINY, config

from omni.base.config import PretrainConfig
from omni.base.errors import UserError
from omni.data.sample import Sample
from omni.pretrain import reading, thinker
from omni.pretrain.__main__ import run
from omni.pretrain.progress import Progress
from omni.pretrain.ragged import Ragged
from omni.pretrain.thinker import ThinkerStage

SHAPE = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 32}
GRASS = {"words": ["grass"], "box": [0, 0, 1, 1]}
LINES = [
    {"messages": [{"role": "user", "content": "what is this"}, {"role": "assistant", "content": "cat"},
                  {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "left"}],
     "objects": [GRASS, {"words": ["red", "cat"], "box": [0.8, 0.02, 0.98, 0.2]}]},
    {"messages": [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "dog"}],
     "objects": [{"words": ["blue", "dog"], "box": [0.5, 0.5, 1, 1]}]},
    *({"text": text} for text in ("what is this", "the red cat sleeps", "a blue dog runs on grass")),
]


@pytest.fixture
def told(toy, tmp_path, monkeypatch):
    """A stage on `LINES`, without the noise of an encoder."""
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    monkeypatch.setattr(reading, "LOST", 0.0)
    monkeypatch.setattr(reading, "UNSURE", 0.0)
    monkeypatch.setattr(thinker, "NOISE", 0.0)
    path = str(tmp_path / "t.jsonl")
    return ThinkerStage(config(toy, tmp_path, "thinker", train=path, val=path, arch=SHAPE))


def words_of(stage, cells, cell: int) -> str:
    ends = [*cells.starts[1:], len(cells.tokens)]
    return stage.tok.decode(cells.tokens[cells.starts[cell]:ends[cell]])


def test_a_cell_holds_the_words_of_what_is_there(told):
    cells = told.data.pictures.cells(0, np.random.default_rng(0))
    assert words_of(told, cells, 3) == " grass red cat"
    assert [words_of(told, cells, cell) for cell in range(16) if cell != 3] == [" grass"] * 15
    cells = told.data.pictures.cells(1, np.random.default_rng(0))
    inside = {10, 11, 14, 15}
    assert all(words_of(told, cells, cell) == " blue dog" * (cell in inside) for cell in range(16))
    assert np.allclose(cells.weights, 0.25, rtol=0.15)  # the middle of the box is the corner of four cells
    joined = reading.Cells.joined([told.data.pictures.cells(0, np.random.default_rng(0)), cells])
    assert words_of(told, joined, 3) == " grass red cat" and words_of(told, joined, 31) == " blue dog"


@given(st.lists(st.tuples(*[st.floats(0, 0.9), st.floats(0.01, 0.5)] * 2), min_size=1, max_size=5),
       st.integers(1, 8))
def test_a_thing_is_told_once_around_its_center(things, side):
    boxes = np.array([(x, y, min(x + w, 1), min(y + h, 1)) for x, w, y, h in things], np.float32)
    weights = reading.cell_weights(boxes, reading.Middle, side).reshape(-1, side, side)
    assert np.allclose(weights.sum((1, 2)), 1)  # so things can be counted
    for (left, top, right, bottom), cells in zip(boxes * side, weights, strict=True):
        rows, columns = cells.nonzero()
        nearest = reading.BLUR / 2 + 1e-6  # how far a center is outside of a cell that tells of it, at most
        assert (np.abs(columns + 0.5 - (left + right) / 2) <= 0.5 + nearest).all()
        assert (np.abs(rows + 0.5 - (top + bottom) / 2) <= 0.5 + nearest).all()


def test_the_ground_is_told_in_all_cells():
    weights = reading.cell_weights(np.array([[0, 0, 1, 1]], np.float32), reading.Middle, 3)
    assert weights.tolist() == [[reading.GROUND] * 9]


def test_words_of_a_cell_are_lost_and_unsure_but_none_is_wrong(told, monkeypatch):
    monkeypatch.setattr(reading, "LOST", 0.5)
    counts = [len(told.data.pictures.cells(0, np.random.default_rng(seed)).tokens) for seed in range(20)]
    assert len({*counts}) > 3
    monkeypatch.setattr(reading, "LOST", 0.0)
    monkeypatch.setattr(reading, "UNSURE", 1.0)
    pictures = [told.data.pictures.cells(1, np.random.default_rng(seed)) for seed in range(20)]
    shown = "".join(words_of(told, cells, 15) for cells in pictures)
    assert {*shown.split()} == {"grass", "red", "cat", "blue", "dog"}
    for cells in pictures:
        tokens, weights = cells.tokens[cells.starts[15]:], cells.weights[cells.starts[15]:]
        for word in (" blue", " dog"):
            assert all(weights[tokens == token].max() > 0.2 for token in told.tok.encode(word))


def test_the_tokens_of_a_picture_are_the_sums_of_the_words_in_its_cells(told, monkeypatch):
    seen = {}
    monkeypatch.setattr(told.model, "hidden", lambda embeds, layout, keep: seen.update(embeds=embeds) or
                        embeds[keep])
    batch, cells, noise = told.batch([1, 3], 0)
    told.loss((batch, cells, noise), torch.device("cpu"))
    places = (batch.ids == told.tok.image).nonzero()[:, 0]
    table = told.model.embed_tokens.weight
    tokens, weights = cells.tokens[cells.starts[15]:], torch.from_numpy(cells.weights[cells.starts[15]:])
    assert len(places) == 16 == len(noise)
    assert torch.allclose(seen["embeds"][places[15]], (table[tokens] * weights[:, None]).sum(0), atol=1e-6)
    assert torch.equal(seen["embeds"][places[0]], torch.zeros(32))  # nothing is there
    others = torch.ones(len(batch.ids), dtype=torch.bool)
    others[places] = False
    assert torch.equal(seen["embeds"][others], table[batch.ids[others]])


def test_questions_about_a_picture_are_also_spoken_and_their_answers_stay(told):
    sample, kinds = Sample(("user", "what is this", "assistant", "cat")), set()
    for seed in range(40):
        ids, labels = reading.with_picture(sample, told.speech, told.tok, np.random.default_rng(seed))
        assert ids.count(told.tok.image) == reading.CELLS
        assert [label for label in labels if label >= 0] == [*told.tok.encode("cat"), told.tok.end]
        kinds.add((told.tok.audio in ids, ids[1] == told.tok.image))
    assert len(kinds) > 2


def test_a_batch_holds_texts_pictures_and_speech_and_an_epoch_all_samples(told):
    batches = told.batches(0)
    assert sorted(int(n) for numbers in batches for n in numbers) == [*range(len(LINES) + told.readings)]
    assert told.readings == 2 and told.batch([len(LINES)], 0)[1] is None  # 0.3 of all samples
    batch, cells, _ = told.batch([0, 2, len(LINES)], 0)
    assert batch.samples == 3 and len(cells.starts) == 16


def test_ragged_lists_come_back():
    lists, rows = [[1, 2, 3], [], [4]], Ragged("i")
    for numbers in lists:
        rows.add(numbers)
    assert [list(rows[i]) for i in range(len(rows))] == lists


@pytest.mark.parametrize("stage, optimizer, stop_at", [("thinker", "adamw", 2), ("thinker", "muon", 4),
                                                       ("audio", "adamw", 5)])
def test_a_stopped_stage_continues_as_if_it_had_not_stopped(toy, tmp_path, monkeypatch, stage, optimizer,
                                                            stop_at):
    shape = SHAPE if stage == "thinker" else TINY
    whole = run(config(toy, tmp_path / "whole", stage, arch=shape, optimizer=optimizer))
    add, wanted = Progress.add, config(toy, tmp_path / "parts", stage, arch=shape, optimizer=optimizer)

    def stopping(progress, loss, count):
        add(progress, loss, count)
        if progress.step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "add", stopping)
    with pytest.raises(SystemExit):
        run(wanted)
    kept = tmp_path / "parts" / f"{stage}.resume.pt"
    assert kept.exists()
    monkeypatch.setattr(Progress, "add", add)
    assert run(wanted, resume=True) == whole and not kept.exists()
    one, other = (torch.load(tmp_path / name / f"{stage}.pt", weights_only=True)["state"]
                  for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_thinker_is_trained_further_with_its_tokenizer(toy, tmp_path):
    first = config(toy, tmp_path / "a", "thinker", arch=SHAPE, num_epochs=1)
    run(first)
    other = {"vocab_size": PretrainConfig().vocab_size, "num_epochs": 1, "start": first.output}
    begun = ThinkerStage(first)
    further = ThinkerStage(config(toy, tmp_path / "b", "thinker", arch=SHAPE, **other))
    saved = torch.load(first.output, weights_only=True)
    assert all(torch.equal(saved["state"][key], value) for key, value in further.model.state_dict().items())
    assert further.tok.json_text == begun.tok.json_text
    with pytest.raises(UserError, match="mis-shaped"):
        ThinkerStage(config(toy, tmp_path / "b", "thinker", arch=SHAPE | {"width": 16}, **other))
    with pytest.raises(UserError, match='no such checkpoint; choose another "start"'):
        ThinkerStage(config(toy, tmp_path / "b", "thinker", arch=SHAPE, **other | {"start": "nowhere.pt"}))


def test_a_stage_is_continued_only_with_its_config_and_data(toy, tmp_path):
    def progress(total=10, **changes):
        return Progress.of(config(toy, tmp_path, "thinker", arch=SHAPE, **changes), total)

    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="no such checkpoint; start without --resume"):
        progress().load(model, [])
    progress().save(model, [])
    progress(device="auto", save_every_minutes=3.0).load(model, [])
    with pytest.raises(UserError, match="another learning_rate, num_epochs; start"):
        progress(learning_rate=0.5, num_epochs=3).load(model, [])
    with pytest.raises(UserError, match="made for 10 steps, and the data now gives 11"):
        progress(total=11).load(model, [])
