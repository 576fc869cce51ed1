"""Projectors that are pretrained to give the words of a Thinker, and how a run starts from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pretrain import TINY, config
from torch.nn import functional as F

from omni.base import checkpoint
from omni.base.config import SFTConfig, build
from omni.base.errors import UserError
from omni.data import image
from omni.data.collate import pad_mels
from omni.model.load import load
from omni.pretrain import reading
from omni.pretrain.__main__ import run
from omni.pretrain.projector import AudioProjectorStage, VisionProjectorStage

THINKER = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 32}
OBJECTS = [{"words": ["red", "cat"], "box": [0.1, 0.1, 0.3, 0.4]}, {"words": ["grass"], "box": [0, 0, 1, 1]}]


@pytest.fixture
def parts(toy, tmp_path):
    """Configs of both projectors, after stages A, B and C."""
    run(config(toy, tmp_path, "thinker", arch=THINKER))
    run(config(toy, tmp_path, "audio", arch=TINY))
    line = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a cat"}],
            "objects": OBJECTS}
    boxed = toy.root / "data" / "image_text" / "boxed.jsonl"
    boxed.write_text("".join(json.dumps({**line, "images": [f"train_{i}.png"]}) + "\n" for i in range(1, 12)))
    pictures = {"train": str(boxed), "val": str(boxed)}
    run(config(toy, tmp_path, "vision_boxes", arch={**TINY, "image_size": 32, "patch_size": 8}, **pictures))
    more = {"thinker": str(tmp_path / "thinker.pt"), "num_epochs": 60, "learning_rate": 1e-2}
    return {
        "audio": config(toy, tmp_path, "audio_projector", start=str(tmp_path / "audio.pt"), **more),
        "vision": config(toy, tmp_path, "vision_projector", start=str(tmp_path / "vision_boxes.pt"),
                         **pictures, **more)}


def test_a_picture_becomes_the_words_of_its_places(parts):
    stage = VisionProjectorStage(parts["vision"])
    table, encode = stage.thinker_words.table, stage.thinker_words.tokenizer.encode
    red, cat, grass = (table[encode(f" {word}")].sum(0) for word in ("red", "cat", "grass"))
    (features, wanted), = stage.pairs(stage.train[:1], [0])
    assert torch.allclose(wanted[0], red + cat + reading.GROUND * grass, atol=1e-6)
    assert all(torch.allclose(wanted[place], reading.GROUND * grass) for place in (1, 2, 3))
    patches = stage.encoder(stage.reader.pixels(stage.train[0].images[0])[None]).reshape(4, 4, -1)
    assert torch.allclose(features[1], patches[:2, 2:].reshape(-1), atol=1e-6)


def test_a_thing_that_was_moved_is_told_where_it_is_now(parts, monkeypatch):
    stage = VisionProjectorStage(parts["vision"])
    monkeypatch.setattr(image, "placement", lambda rng, photograph=False: image.Placement(1.0, 1.0, 0.0))
    (_, plain), (_, moved) = stage.pairs([stage.train[0]] * 2, [0, 1])
    assert torch.allclose(moved[1], plain[0], atol=1e-6) and torch.allclose(moved[0], plain[1], atol=1e-6)


def test_a_frame_becomes_the_words_of_its_pieces(parts):
    stage = AudioProjectorStage(parts["audio"])
    words, pieces = stage.thinker_words, stage.before["pieces"]
    clips = [stage.reader.mel(clip) for clip in stage.val[:3]]
    pairs = stage.pairs(*pad_mels(clips))
    assert [len(features) for features, _ in pairs] == [stage.encoder.lengths(len(clip)) for clip in clips]
    features, wanted = map(torch.cat, zip(*pairs, strict=True))
    head = stage.before["ctc_head"]
    shares = (features @ head["weight"].T + head["bias"]).softmax(-1)
    silence = words.table[words.tokenizer.audio]
    texts = [piece.replace("Ġ", " ") for piece in pieces]  # toy pieces have no other letters than a-z
    said = [words.table[words.tokenizer.encode(text)].sum(0) for text in texts]
    mean = sum(shares[:, [i]] * word for i, word in enumerate([*said, silence]))
    assert torch.allclose(wanted, mean, atol=1e-5)


def test_each_medium_is_encoded_once(parts, monkeypatch):
    for stage in (VisionProjectorStage(parts["vision"]), AudioProjectorStage(parts["audio"])):
        seen, taken = [], stage.taken
        monkeypatch.setattr(stage, "taken", lambda new, s=seen, t=taken: s.extend(new) or t(new))
        first, _ = stage.batch([3, 1], 0), stage.batch([1, 2], 0)
        assert sorted(seen) == [1, 2, 3]
        assert all(map(torch.equal, stage.batch([3, 1], 5), first))


@pytest.mark.parametrize("medium", ["audio", "vision"])
def test_a_projector_is_fitted_and_nothing_else_changes(parts, tmp_path, medium):
    before = checkpoint.load(parts[medium].start, f"{medium}_encoder", "")
    first = run(replace(parts[medium], num_epochs=1))["explained"]
    least = {"vision": 0.5, "audio": -2}[medium]  # the toy clips hardly differ
    assert run(parts[medium])["explained"] > max(first, least)
    after = checkpoint.load(parts[medium].output, f"{medium}_encoder", "")
    assert after.keys() - before.keys() == {"projector"}
    assert all(torch.equal(after["state"][name], weight) for name, weight in before["state"].items())


def system(tmp_path, **changes):
    names = {"thinker": "thinker", "audio": "audio_projector", "vision": "vision_projector"}
    values = {f"{part}_ckpt": str(tmp_path / f"{name}.pt") for part, name in names.items()} | changes
    lines = []
    return load(build(SFTConfig, values, "toy"), report=lines.append), "\n".join(lines)


def test_a_run_starts_from_pretrained_projectors(parts, tmp_path):
    for part in parts.values():
        run(replace(part, num_epochs=1))
    model, lines = system(tmp_path)
    assert lines.count("projector: 4 tensors loaded") == 2
    stage = VisionProjectorStage(parts["vision"])
    content = checkpoint.load(parts["vision"].output, "vision_encoder", "")
    stage.model.load_state_dict(content["projector"]["state"])
    features, wanted = next(stage.held_out())
    pixels = stage.reader.pixels(stage.val[0].images[0])[None]
    shown = model._project_images(model.encode_images(pixels))
    assert torch.allclose(shown, stage.model(features), atol=1e-6)
    new, lines = system(tmp_path, vision_ckpt=parts["vision"].start)
    assert lines.count("projector: 4 tensors loaded") == 1
    assert F.mse_loss(shown, wanted) < F.mse_loss(new._project_images(new.encode_images(pixels)), wanted)


def test_a_projector_for_another_thinker_or_of_another_shape_is_not_used(toy, parts, tmp_path):
    for part in parts.values():
        run(replace(part, num_epochs=1))
    run(config(toy, tmp_path / "other", "thinker", arch=THINKER, seed=1))
    _, lines = system(tmp_path, thinker_ckpt=str(tmp_path / "other" / "thinker.pt"))
    assert lines.count("is for the words of another Thinker, so a new one is trained") == 2
    _, lines = system(tmp_path, image_merge=4)
    assert "vision_projector.pt: its projector has another shape" in lines
    content = checkpoint.load(tmp_path / "audio_projector.pt", "audio_encoder", "")
    for broken in ("words", {}, {**content["projector"], "state": 3}):
        checkpoint.save(tmp_path / "audio_projector.pt", "audio_encoder", {**content, "projector": broken})
        assert "so a new one is trained" in system(tmp_path)[1]


def test_a_pretrained_projector_is_not_aligned_again(parts, tmp_path):
    for part in parts.values():
        run(replace(part, num_epochs=1))
    with pytest.raises(UserError, match="audio_projector.pt brings one that is fitted already"):
        system(tmp_path, audio_alignment_clips=8)
    assert "tensors loaded" in system(tmp_path, audio_ckpt=parts["audio"].start, audio_alignment_clips=8)[1]


def test_a_projector_needs_an_encoder_and_a_thinker(parts, tmp_path):
    with pytest.raises(UserError, match='"thinker" is missing'):
        run(replace(parts["vision"], thinker=None))
    with pytest.raises(UserError, match='"start" is missing'):
        run(replace(parts["audio"], start=None))
    content = checkpoint.load(parts["audio"].start, "audio_encoder", "")
    del content["ctc_head"]
    checkpoint.save(tmp_path / "bare.pt", "audio_encoder", content)
    with pytest.raises(UserError, match="no CTC head"):
        AudioProjectorStage(replace(parts["audio"], start=str(tmp_path / "bare.pt")))
    assert np.isfinite(run(replace(parts["audio"], num_epochs=1))["explained"])
