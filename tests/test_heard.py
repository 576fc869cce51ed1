"""Stage A's readings of what the audio encoder hears in clips."""

from dataclasses import replace

import pytest
import torch
from test_pretrain import TINY, config
from test_projector import THINKER
from torch.nn import functional as F

from omni.base.config import PretrainConfig
from omni.base.errors import UserError
from omni.pretrain import heard
from omni.pretrain.__main__ import run
from omni.pretrain.projector import AudioProjectorStage
from omni.pretrain.thinker import ThinkerStage


@pytest.fixture
def hearing(toy, tmp_path):
    """The config of a Thinker that is trained further and reads what stage B's encoder hears."""
    run(config(toy, tmp_path, "thinker", arch=THINKER))
    run(config(toy, tmp_path, "audio", arch=TINY))
    return config(toy, tmp_path / "more", "thinker", arch=THINKER, start=str(tmp_path / "thinker.pt"),
                  clips=config(toy, tmp_path, "audio").train, audio_encoder=str(tmp_path / "audio.pt"),
                  reading_share=0.5, vocab_size=PretrainConfig().vocab_size)


def test_a_clip_is_told_as_its_projector_will_give_it(toy, hearing, tmp_path, monkeypatch):
    """The same embeddings as those that the audio projector is fitted to, which are computed otherwise."""
    monkeypatch.setattr(heard, "LIKELY", 0.0)
    monkeypatch.setattr(heard, "VARIED", 0.0)
    stage = ThinkerStage(hearing)
    fitted = AudioProjectorStage(config(toy, tmp_path, "audio_projector", start=hearing.audio_encoder,
                                        thinker=hearing.start))
    table = stage.model.embed_tokens.weight.detach()
    for number, sample in enumerate(stage.heard.samples):
        (ids, labels), cells = stage.heard.row(number)
        tokens, weights, starts = map(torch.from_numpy, cells)
        told = F.embedding_bag(tokens, table, starts, mode="sum", per_sample_weights=weights)
        mel = fitted.reader.mel(sample.audios[0])
        (_, wanted), = fitted.pairs(mel[None], torch.tensor([len(mel)]))
        assert torch.allclose(told, wanted, atol=1e-5)
        plain, same_labels = stage.tok.chat(sample.messages, [], [len(wanted)])
        assert labels == same_labels and ids.count(stage.tok.image) == len(wanted)
        assert [i for i in ids if i != stage.tok.image] == [i for i in plain if i != stage.tok.audio]


def test_the_readings_of_a_batch_are_clips(hearing):
    stage = ThinkerStage(hearing)
    assert len(stage.heard) == 12 and stage.readings == len(stage.train)
    numbers = [0, len(stage.train), len(stage.train) + 1]
    batch, cells, noise = stage.batch(numbers, 0)
    frames = sum(len(stage.heard.row(n % 12)[1].starts) for n in numbers[1:])
    assert len(cells.starts) == frames == len(noise) == int((batch.ids == stage.tok.image).sum())
    cpu = torch.device("cpu")
    before = stage._score(batch, cells, noise, cpu)[0]
    weights = cells.weights.copy()
    weights[:] = 0.0
    assert before != stage._score(batch, cells._replace(weights=weights), noise, cpu)[0]


def test_it_learns_to_read_what_is_heard(hearing):
    def loss(config) -> float:
        stage = ThinkerStage(config)
        batch = stage.batch(range(len(stage.train), len(stage.train) + 12), 0)
        return float(stage.loss(batch, torch.device("cpu"))[0])

    before = loss(hearing)
    run(replace(hearing, num_epochs=20, learning_rate=1e-2))
    assert loss(replace(hearing, start=hearing.output)) < 0.7 * before


def test_samples_that_are_not_one_clip_are_named(toy, hearing, capsys):
    both = [hearing.clips, str(toy.root / "data" / "text_only" / "train.jsonl")]
    assert len(ThinkerStage(replace(hearing, clips=both)).heard) == 12
    assert ('12 of 24 samples are skipped: the stage thinker needs one clip and no image in each sample of '
            '"clips"') in capsys.readouterr().out


@pytest.mark.parametrize("changes, words", [
    ({"audio_encoder": None}, "give both"), ({"clips": ""}, "give both"),
    ({"audio_encoder": "thinker.pt"}, "thinker.pt")])
def test_clips_need_an_encoder_that_hears(hearing, changes, words):
    with pytest.raises(UserError, match=words):
        ThinkerStage(replace(hearing, **changes))
