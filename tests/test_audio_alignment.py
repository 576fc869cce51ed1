"""The audio projector is fitted to the Thinker's words before training."""

import json

import pytest
import torch
from test_parallel import finished, torchrun
from toy import WORDS

from omni.base import checkpoint
from omni.base.config import SFTConfig, build
from omni.base.config_file import check_parts
from omni.base.distributed import ALONE
from omni.base.errors import UserError
from omni.data.decoding import Decoder
from omni.data.mixture import Mix
from omni.data.sample import AUDIO, Sample, flat
from omni.model.loss import ctc_frames
from omni.train import audio_alignment
from omni.train.audio_alignment import align, transcript
from omni.train.features import FeatureStore
from sft_omni import main


def sample(answer: str, clips: int = 1, **more) -> Sample:
    return Sample(flat((("user", AUDIO * clips), ("assistant", answer))), audios=("a.wav",) * clips, **more)


@pytest.mark.parametrize("given, words", [
    (sample("hello", task="asr"), "hello"), (sample("four", task="qa"), ""),
    (sample("four", task="qa", transcript="two plus two"), "two plus two"),
    (sample("hello", clips=2, task="asr"), ""), (sample("hello", clips=0, task="text"), "")])
def test_the_words_of_a_clip(given, words):
    assert transcript(given) == words


@pytest.mark.parametrize("tokens, least", [([], 0), ([5], 1), ([5, 6], 2), ([5, 5], 3), ([5, 5, 5, 6], 6)])
def test_ctc_needs_a_frame_between_equal_tokens(tokens, least):
    assert ctc_frames(tokens) == least


def aligned(toy, tmp_path, source="audio_text", **changes):
    """A toy model, its mix of one source and its features, after the alignment."""
    model, samples = toy.model(), toy.samples(source)
    config = build(SFTConfig, {**toy.config, "audio_alignment_clips": 100, **changes}, "toy")
    decoder = Decoder(toy.collator(model).reader, 20)
    features = FeatureStore(model, decoder, 1.0, folder=str(tmp_path / "features"))
    mix = Mix(train={source: samples}, val={source: samples}, weights={source: 1.0})
    align(model, mix, features, config, ALONE)
    return model, samples, features


def test_frames_become_the_tokens_of_what_is_said(toy, tmp_path, monkeypatch, capsys):
    """Greedy decoding by the nearest embeddings gives the transcripts back."""
    monkeypatch.setattr(audio_alignment, "EPOCHS", 800)
    monkeypatch.setattr(audio_alignment, "MEAN_EPOCHS", 400)
    monkeypatch.setattr(audio_alignment, "DROPPED", 0.0)
    model, samples, features = aligned(toy, tmp_path)
    table, encode = model.thinker.embed_tokens.weight.detach(), model.tokenizer.encode
    blank = encode(" ")[0]
    used = sorted({token for word in WORDS for token in encode(word)} | {blank})
    for one in samples:
        with torch.no_grad():
            frames = model.audio_projector(features.audio(one.audios[0], 0).float())
        heard = torch.cdist(frames, table[used]).argmin(1)
        assert torch.cosine_similarity(frames, table[used][heard]).mean() > 0.8  # as the Thinker knows them
        heard = [used[i] for i in heard]
        kept = [t for i, t in enumerate(heard) if t != blank and (i == 0 or heard[i - 1] != t)]
        assert model.tokenizer.decode(kept) == one.answer
    assert f"fitted to the transcripts of {len(samples)} clips" in capsys.readouterr().out


def test_only_the_projector_is_changed(toy, tmp_path):
    before = {name: weight.clone() for name, weight in toy.model().state_dict().items()}
    after = aligned(toy, tmp_path)[0].state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {f"audio_projector.{layer}_proj.{kind}" for layer in ("up", "down")
                       for kind in ("weight", "bias")}


def test_clips_without_transcripts_are_one_line(toy, tmp_path):
    with pytest.raises(UserError, match="no training clip has a transcript that fits"):
        aligned(toy, tmp_path, "text_only")


@pytest.mark.parametrize("changes", [{"freeze_encoders": ["vision"]}, {"feature_cache_gb": 0}])
def test_it_needs_the_features_of_a_frozen_encoder(toy, changes):
    values = {**toy.config, "audio_alignment_clips": 10, **changes}
    with pytest.raises(UserError, match='"audio_alignment_clips" needs the kept features'):
        check_parts(build(SFTConfig, values, "toy"), values, "toy.json")


@pytest.mark.parametrize("media", ["first", "drawn"])
def test_a_resumed_run_is_exact(toy, tmp_path, media, capsys):
    settings = {"audio_alignment_clips": 8, "save_every_steps": 1, "keep_checkpoints": 99,
                "check_media": media}
    main(["--config", toy.write(tmp_path, **settings)])
    assert "fitted to the transcripts of 8 clips" in capsys.readouterr().out
    out = tmp_path / "out"
    final = checkpoint.load(out / "omni_final.pt", "omni", "")
    (out / "omni_final.pt").unlink()
    main(["--config", toy.write(tmp_path, **settings), "--resume", str(out / "step_000002.pt")])
    assert "fitted to the transcripts" not in capsys.readouterr().out
    again = checkpoint.load(out / "omni_final.pt", "omni", "")
    for part in ("thinker", "projectors"):
        was, now = (content[part].get("state", content[part]) for content in (final, again))
        assert all(torch.equal(tensor, now[name]) for name, tensor in was.items())
    assert json.loads((out / "config.json").read_text())["audio_alignment_clips"] == 8


def test_two_ranks_share_the_work(toy, tmp_path):
    run = torchrun(2, toy, tmp_path / "out", audio_alignment_clips=8, num_epochs=1)
    said = finished(run, 100)
    assert run.returncode == 0 and said.count("fitted to the transcripts of 8 clips") == 1, said
