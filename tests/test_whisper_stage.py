"""Stage B trains Whisper's encoder further; the other stages refuse what they can't train."""

from dataclasses import replace

import open_weights
import pytest
import torch
from test_pretrain import TINY, config

from omni.base.errors import UserError
from omni.data import audio, whisper_mel
from omni.model.load import load_encoder
from omni.model.pretrained import load_audio_encoder
from omni.pretrain.__main__ import run
from omni.pretrain.audio_encoder import AudioStage
from omni.pretrain.vision_boxes import BoxStage
from omni.train.optim import of_stage


def test_whisper_is_trained_further(toy, tmp_path):
    """A published folder, whose encoder gets its own log-mel; the result is an encoder like any other."""
    open_weights.whisper(tmp_path / "whisper")
    further = config(toy, tmp_path, "audio", start=str(tmp_path / "whisper"), head_learning_rate=1e-2)
    stage, (published, _) = AudioStage(further), load_audio_encoder(tmp_path / "whisper")
    assert all(torch.equal(value, stage.encoder.state_dict()[name])
               for name, value in published.state_dict().items())
    mel = stage.reader.mel(stage.val[0])
    assert torch.equal(mel, whisper_mel.log_mel(whisper_mel.mel_power(audio.load(stage.val[0]),
                                                                      published.arch)))
    figures = run(further)
    trained, content = load_encoder(further.output, "audio_encoder")
    assert trained.arch == published.arch and content["metrics"] == figures
    assert not torch.equal(trained.conv1.weight, published.conv1.weight)
    again = AudioStage(replace(further, start=further.output)).model
    assert all(torch.equal(value, again["head"].state_dict()[name])  # of the same texts
               for name, value in content["ctc_head"].items())


def test_a_stage_refuses_an_encoder_that_it_cannot_train(toy, tmp_path):
    open_weights.siglip(tmp_path / "siglip")
    with pytest.raises(UserError, match="the stage vision_boxes can't train"):
        BoxStage(config(toy, tmp_path, "vision_boxes", start=str(tmp_path / "siglip")))


def test_a_new_head_has_its_own_rate(toy, tmp_path):
    head = AudioStage(config(toy, tmp_path, "audio", arch=TINY, head_learning_rate=0.02, learning_rate=0.003))
    optimizer, = of_stage(head.model, head.config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in head.model["head"].parameters()} == {0.02}
    assert {rates[id(p)] for p in head.encoder.parameters()} == {0.003}
    with pytest.raises(UserError, match='"head_learning_rate" has no effect with "optimizer": "muon"'):
        AudioStage(replace(head.config, optimizer="muon"))
