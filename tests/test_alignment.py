"""New projectors are fitted to the Thinker's words before training."""

import json
import math

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
from omni.data.speech_pieces import SpeechPieces
from omni.model.loss import ctc_frames
from omni.train import alignment, audio_alignment, vision_alignment, word_scores
from omni.train.alignment import align
from omni.train.audio_alignment import heard, transcript
from omni.train.features import FeatureStore
from omni.train.vision_alignment import Pictures
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


def aligned(toy, tmp_path, source="audio_text", key="audio_alignment_clips", **changes):
    """A toy model, the samples of a source and their features, after the alignment."""
    model, samples = toy.model(**changes), toy.samples(source)
    config = build(SFTConfig, {**toy.config, key: 100, **changes}, "toy")
    decoder = Decoder(toy.collator(model).reader, 20)
    features = FeatureStore(model, decoder, 1.0, folder=str(tmp_path / "features"))
    mix = Mix(train={source: samples}, val={source: samples}, weights={source: 1.0})
    align(model, mix, features, config, ALONE)
    return model, samples, features


def headless(toy, tmp_path) -> dict:
    """The change of a config whose audio encoder has no CTC head."""
    content = checkpoint.load(toy.config["audio_ckpt"], "audio_encoder", "")
    checkpoint.save(tmp_path / "headless.pt", "audio_encoder", {**content, "ctc_head": None})
    return {"audio_ckpt": str(tmp_path / "headless.pt")}


def test_frames_become_the_pieces_that_the_ctc_head_hears(toy, tmp_path, monkeypatch, capsys):
    """Against a loop: each piece's mean embedding, by its probability; the last score is silence."""
    monkeypatch.setattr(alignment, "HEARD_EPOCHS", 400)
    monkeypatch.setattr(audio_alignment, "MOST_PIECES", 100)
    model, samples, features = aligned(toy, tmp_path)
    content = checkpoint.load(toy.config["audio_ckpt"], "audio_encoder", "")
    pieces, table = SpeechPieces.of(content["pieces"]), model.thinker.embed_tokens.weight.detach().double()
    weight, bias = (content["ctc_head"][name].double() for name in ("weight", "bias"))
    texts = [pieces.text(i) for i in range(len(pieces))] + [" "]
    for one in samples:
        frames, wanted = features.audio(one.audios[0], 0).float(), []
        for frame in frames.double():
            chances = (weight @ frame + bias).softmax(0)
            wanted.append(sum(chance * table[model.tokenizer.encode(text)].mean(0)
                              for chance, text in zip(chances, texts, strict=True)))
        with torch.no_grad():
            given = model.audio_projector(frames).double()
        torch.testing.assert_close(heard(model, toy.config["audio_ckpt"], [])(frames).double(),
                                   torch.stack(wanted), atol=1e-5, rtol=1e-4)
        assert torch.cosine_similarity(given, torch.stack(wanted)).min() > 0.9
    assert f"fitted to the words of {len(samples)} clips" in capsys.readouterr().out


def test_a_head_for_other_frames_or_of_short_pieces_is_not_used(toy, tmp_path, monkeypatch):
    """A run may stack more frames than stage B did. A Thinker doesn't read pieces of words at once."""
    model, texts = toy.model(), ["very low"]
    pieces = SpeechPieces.of(checkpoint.load(toy.config["audio_ckpt"], "audio_encoder", "")["pieces"])
    share = len(pieces.encode(*texts)) / len(model.tokenizer.encode(*texts))
    for most, used in ((share - 0.01, False), (share, True)):
        monkeypatch.setattr(audio_alignment, "MOST_PIECES", most)
        assert (heard(model, toy.config["audio_ckpt"], texts) is not None) == used
    content = checkpoint.load(toy.config["audio_ckpt"], "audio_encoder", "")
    head = {name: tensor.repeat(1, 2) if tensor.dim() == 2 else tensor
            for name, tensor in content["ctc_head"].items()}
    checkpoint.save(tmp_path / "wide.pt", "audio_encoder", {**content, "ctc_head": head})
    assert heard(model, str(tmp_path / "wide.pt"), texts) is None


def test_frames_become_the_tokens_of_what_is_said(toy, tmp_path, monkeypatch, capsys):
    """Without a CTC head, greedy decoding by the nearest embeddings gives the transcripts back."""
    monkeypatch.setattr(alignment, "EPOCHS", 800)
    monkeypatch.setattr(alignment, "MEAN_EPOCHS", 400)
    monkeypatch.setattr(audio_alignment, "DROPPED", 0.0)
    model, samples, features = aligned(toy, tmp_path, **headless(toy, tmp_path))
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
    assert f"fitted to the words of {len(samples)} clips" in capsys.readouterr().out


def test_places_become_the_words_of_answers(toy, tmp_path, monkeypatch, capsys):
    """The nearest embeddings of a picture's places are the tokens of its answer, where it has few."""
    monkeypatch.setattr(alignment, "EPOCHS", 800)
    monkeypatch.setattr(alignment, "MEAN_EPOCHS", 400)
    monkeypatch.setattr(vision_alignment, "LEAST", 2)
    model, samples, features = aligned(toy, tmp_path, "image_text", "vision_alignment_images")
    pictures = Pictures(model, samples, features)
    words, few = pictures.words, 0
    for number, (_, has) in enumerate(pictures.images):
        with torch.no_grad():
            places = model.vision_projector(pictures.rows([number])[0])
        told = {*torch.cdist(places, words.embeddings).argmin(1).tolist()} - {words.blank}
        if len(has) < len(places):  # each place tells one token
            assert told == {*has}
            few += 1
    assert few >= 6
    assert f"fitted to the words of {len(samples)} images" in capsys.readouterr().out


def test_the_loss_of_pictures_is_that_of_a_noisy_or(toy, tmp_path, monkeypatch):
    """Against loops in float64."""
    monkeypatch.setattr(vision_alignment, "LEAST", 2)
    model, samples = toy.model(), toy.samples("image_text")
    features = FeatureStore(model, Decoder(toy.collator(model).reader, 20), 1.0, folder=str(tmp_path / "f"))
    features.add(samples, 1, "images")
    pictures = Pictures(model, samples, features)
    loss = pictures.loss(model.vision_projector, [0, 3], torch.Generator())
    said = [set(model.tokenizer.encode(f" {sample.answer}")) for sample in samples]
    table = model.thinker.embed_tokens.weight.detach().double()
    space = model.tokenizer.encode(" ")[0]
    tokens = sorted({token for has in said for token in has
                     if 2 <= sum(token in h for h in said) < len(said) and token != space})
    near, total = table[[*tokens, space]], 0.0
    for number in (0, 3):
        places = model.vision_projector(pictures.rows([number])[0]).detach().double()
        for k, token in enumerate(tokens):
            absent = 1.0
            for place in places:
                scores = torch.stack([-(place - word).square().sum() / 2 / word_scores.VARIANCE
                                      for word in near])
                absent *= 1 - float(scores.softmax(0)[k])
            right = 1 - absent if token in said[number] else absent
            total -= math.log(right) * math.log(len(said) / sum(token in h for h in said))
    assert loss.item() == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("medium, source, key", [("audio", "audio_text", "audio_alignment_clips"),
                                                 ("vision", "image_text", "vision_alignment_images")])
def test_only_the_projector_is_changed(toy, tmp_path, monkeypatch, medium, source, key):
    monkeypatch.setattr(vision_alignment, "LEAST", 2)
    before = {name: weight.clone() for name, weight in toy.model().state_dict().items()}
    after = aligned(toy, tmp_path, source, key)[0].state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {f"{medium}_projector.{layer}_proj.{kind}" for layer in ("up", "down")
                       for kind in ("weight", "bias")}


@pytest.mark.parametrize("key, problem", [
    ("audio_alignment_clips", "no training clip has a transcript that fits"),
    ("vision_alignment_images", "no word is in the answers about at least 10 training images")])
def test_media_without_words_are_one_line(toy, tmp_path, key, problem):
    with pytest.raises(UserError, match=problem):
        aligned(toy, tmp_path, "text_only", key)


@pytest.mark.parametrize("key, changes", [
    ("audio_alignment_clips", {"freeze_encoders": ["vision"]}),
    ("vision_alignment_images", {"freeze_encoders": ["audio"]}),
    ("audio_alignment_clips", {"feature_cache_gb": 0})])
def test_it_needs_the_features_of_a_frozen_encoder(toy, key, changes):
    values = {**toy.config, key: 10, **changes}
    with pytest.raises(UserError, match=f'"{key}" needs the kept features'):
        check_parts(build(SFTConfig, values, "toy"), values, "toy.json")


@pytest.mark.parametrize("media", ["first", "drawn"])
def test_a_resumed_run_is_exact(toy, tmp_path, media, capsys):
    settings = {"audio_alignment_clips": 8, "save_every_steps": 1, "keep_checkpoints": 99,
                "check_media": media}
    main(["--config", toy.write(tmp_path, **settings)])
    assert "fitted to the words of 8 clips" in capsys.readouterr().out
    out = tmp_path / "out"
    final = checkpoint.load(out / "omni_final.pt", "omni", "")
    (out / "omni_final.pt").unlink()
    main(["--config", toy.write(tmp_path, **settings), "--resume", str(out / "step_000002.pt")])
    assert "fitted to the words" not in capsys.readouterr().out
    again = checkpoint.load(out / "omni_final.pt", "omni", "")
    for part in ("thinker", "projectors"):
        was, now = (content[part].get("state", content[part]) for content in (final, again))
        assert all(torch.equal(tensor, now[name]) for name, tensor in was.items())
    assert json.loads((out / "config.json").read_text())["audio_alignment_clips"] == 8


def test_two_ranks_share_the_work(toy, tmp_path):
    run = torchrun(2, toy, tmp_path / "out", audio_alignment_clips=8, num_epochs=1)
    said = finished(run, 100)
    assert run.returncode == 0 and said.count("fitted to the words of 8 clips") == 1, said
