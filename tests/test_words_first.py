"""One feature for each word comes first, then silence (WordsFirst)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.base import checkpoint
from omni.base.config import PretrainConfig, SFTConfig
from omni.base.config_file import load_config
from omni.base.errors import UserError
from omni.chat import OmniModel
from omni.model.words_first import WordsFirst
from omni.pretrain.audio_encoder import AudioStage
from sft_omni import main

WIDTH, OUTPUTS = 4, 3


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, OUTPUTS - 1), st.integers(1, 3)), min_size=1, max_size=9),
                min_size=1, max_size=4))
def test_each_word_keeps_its_most_probable_feature_and_silence_follows(clips):
    """Against a loop. A clip lists what is heard in each feature, and how surely."""
    order = WordsFirst(WIDTH, OUTPUTS)
    with torch.no_grad():
        order.weight.copy_(torch.eye(WIDTH)[:OUTPUTS])
        order.bias.zero_()
    longest, blank = max(map(len, clips)), OUTPUTS - 1
    features = torch.zeros(len(clips), longest, WIDTH)
    features[..., -1] = torch.arange(longest)  # tells them apart; the head doesn't read it
    for clip, row in zip(clips, features, strict=True):
        for (heard, sure), feature in zip(clip, row, strict=False):
            feature[heard] = sure
        row[len(clip):, 0] = 9
    moved = order(features, torch.tensor([len(clip) for clip in clips]))
    for clip, before, after in zip(clips, features, moved, strict=True):
        quiet = [sure if heard == blank else -sure for heard, sure in clip]
        words, others, k = [], [], 0
        while k < len(clip):
            row = [k]
            while row[-1] + 1 < len(clip) and clip[row[-1] + 1][0] == clip[k][0]:
                row.append(row[-1] + 1)
            surest = max(row, key=lambda i: clip[i][1])  # the first of these
            for i in row:
                if clip[k][0] == blank:
                    others.append(i)
                elif i == surest:
                    words.append(i)
                else:
                    others.append(quiet.index(max(quiet)))
            k = row[-1] + 1
        assert torch.equal(after, before[words + others + [*range(len(clip), longest)]])


@pytest.fixture
def final(toy, tmp_path) -> str:
    main(["--config", toy.write(tmp_path, audio_words_first=True, samples_per_epoch=8, num_epochs=1)])
    return str(tmp_path / "out" / "omni_final.pt")


def test_a_run_trains_on_reordered_features_and_its_system_keeps_the_order(toy, final):
    plain, changed = (toy.model(audio_words_first=on).audio_encoder for on in (False, True))
    kept = OmniModel.load(final).audio_encoder
    head = checkpoint.load(toy.config["audio_ckpt"], "audio_encoder", "")["ctc_head"]
    clip = toy.samples("audio_text", "val")[0].audios[0]
    mel = toy.collator(toy.model()).reader.mel(clip)
    batch = mel[None], torch.tensor([len(mel)])
    with torch.no_grad():
        features, lengths = plain.eval()(*batch)
        order = WordsFirst(*reversed(head["weight"].shape))
        order.load_state_dict(head)
        expected = order(features, lengths)[0]
        assert not torch.equal(expected, features[0])
        for encoder in (changed.eval(), kept):
            given, count = encoder(*batch)
            assert torch.equal(given[0], expected) and torch.equal(count, lengths)


def test_it_needs_a_frozen_encoder_with_a_ctc_head(toy, tmp_path):
    content = checkpoint.load(toy.config["audio_ckpt"], "audio_encoder", "")
    checkpoint.save(tmp_path / "headless.pt", "audio_encoder", {**content, "ctc_head": None})
    with pytest.raises(UserError, match="needs an encoder with a CTC head"):
        toy.model(audio_words_first=True, audio_ckpt=str(tmp_path / "headless.pt"))
    with pytest.raises(UserError, match="needs a frozen audio encoder"):
        load_config(toy.write(tmp_path, audio_words_first=True, freeze_encoders=["vision"]), SFTConfig)


def test_stage_b_refuses_to_reorder(toy):
    data = str(toy.root / "data" / "audio_text" / "train.jsonl")
    with pytest.raises(UserError, match="ctc_outputs"):
        AudioStage(PretrainConfig(stage="audio", arch={"ctc_outputs": 5}, train=data, val=data,
                                  output="x.pt"))


def test_the_encoder_of_a_system_keeps_its_order(toy, final):
    assert toy.model(audio_ckpt=final).audio_encoder.arch.ctc_outputs
    assert toy.model(audio_ckpt=final, audio_words_first=True).audio_encoder.arch.ctc_outputs
