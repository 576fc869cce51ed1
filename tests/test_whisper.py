"""Whisper's encoder and log-mel equal those of transformers, in both windows, and clips don't mix."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from omni.base import checkpoint
from omni.base.config import VisionArch, WhisperArch
from omni.base.errors import MediaError
from omni.data import audio, whisper_mel
from omni.data.collate import pad_mels
from omni.data.media_reader import MediaReader
from omni.data.tokenizer import audio_tokens
from omni.model.whisper import WhisperEncoder

SHAPE = {"num_mel_bins": 80, "d_model": 48, "encoder_layers": 3, "encoder_attention_heads": 4,
         "encoder_ffn_dim": 96, "max_source_positions": 60}
CLIPS = sorted((Path(__file__).parent.parent / "data" / "tiny" / "audio_text" / "audio").glob("*.ogg"))[:3]
TOLERANCE = 2e-6  # of the largest value


def randomise(model: torch.nn.Module) -> None:
    """Every parameter, biases and norms too, so that none can be forgotten."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.3 if p.dim() == 1 else p[0].numel() ** -0.5)


def published(**changes) -> WhisperModel:
    model = WhisperModel(WhisperConfig(**{**SHAPE, **changes}, decoder_layers=1, decoder_ffn_dim=8,
                                       decoder_attention_heads=4, vocab_size=51865)).eval()
    randomise(model)
    return model


def ours(model: WhisperModel, prefix: str = "", **changes) -> WhisperEncoder:
    arch = replace(WhisperEncoder.arch_of(model.config.to_dict()), **changes)
    state = WhisperEncoder.rename({prefix + name: t for name, t in model.state_dict().items()})
    encoder = WhisperEncoder(arch)
    checkpoint.load_state(encoder, state, "audio_encoder", "the test")
    return encoder.eval()


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == wanted.shape
    difference = ((got - wanted).abs().max() / wanted.abs().max()).item()
    print(f"largest difference {difference:.1e} of the largest value")
    assert difference <= tolerance


def speech(seconds: float, seed: int = 0) -> torch.Tensor:
    """Sound whose loudness varies, so that the log-mel reaches its floor and its top."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16_000)) / 16_000
    wave = np.sin(2 * np.pi * (200 + 300 * t) * t) * np.clip(np.sin(5 * t), 0, 1)
    noise = rng.standard_normal(len(t)) * (t % 1 < 0.5)
    return torch.from_numpy((0.3 * wave + 1e-3 * noise).astype("float32"))


def extracted(wave: torch.Tensor, mels: int = 80) -> torch.Tensor:
    """transformers' log-mel (F, mels) of a clip padded to 30 s."""
    features = WhisperFeatureExtractor(feature_size=mels)(wave.numpy(), sampling_rate=16_000)
    return torch.from_numpy(np.asarray(features["input_features"][0])).T


@torch.no_grad()
@pytest.mark.parametrize("mels, prefix", [(80, ""), (128, "model.")])
@pytest.mark.parametrize("frames", [120, 119, 1])
def test_the_clip_window_equals_the_encoder_cut_to_the_length(mels, prefix, frames):
    model = published(num_mel_bins=mels)
    encoder = ours(model, prefix, stack=1)
    mel = torch.randn(1, frames, mels)
    got, lengths = encoder(mel, torch.tensor([frames]))
    features = (frames + 1) // 2
    assert lengths.tolist() == [features] == [encoder.lengths(frames)]
    parts = model.encoder  # as a whole it refuses other lengths
    x = F.gelu(parts.conv2(F.gelu(parts.conv1(mel.transpose(1, 2))))).transpose(1, 2)
    x = x + parts.embed_positions.weight[:features]
    for layer in parts.layers:
        x = layer(x, None)
    assert_close(got, parts.layer_norm(x))


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.33, 0.65, 1.2])  # 1.2 s: all positions, no room for silence
def test_the_30s_window_equals_the_published_pipeline(seconds):
    """Log-mel and encoder together; the window is 1.2 s here."""
    model = published()
    encoder = ours(model, window="30s", stack=1)
    wave = speech(seconds)
    mel = whisper_mel.log_mel(whisper_mel.mel_power(wave, encoder.arch))
    other = torch.randn(120, 80)  # another clip in the batch
    got, lengths = encoder(*pad_mels([mel, other]))
    extractor = WhisperFeatureExtractor(chunk_length=1)
    extractor.n_samples = 120 * 160
    features = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert features.shape == (1, 80, 120)
    wanted = model.encoder(features).last_hidden_state[0]
    assert_close(got[0, :lengths[0]], wanted[:lengths[0]])


@torch.no_grad()
@pytest.mark.parametrize("window", ["clip", "30s"])
def test_clips_do_not_depend_on_each_other(window):
    encoder = ours(published(), window=window)
    mels = [torch.randn(frames, 80) + 0.1 * frames for frames in (120, 41, 40, 39, 9, 3, 1)]
    batch, counts = pad_mels(mels)
    together, lengths = encoder(batch, counts)
    assert together.shape[1] == encoder.lengths(batch.shape[1]) and together.shape[2] == encoder.token_width
    rubbish = torch.where(torch.arange(120)[:, None] < counts[:, None, None], batch, 9.0)
    assert_close(encoder(rubbish, counts)[0], together, 0)
    for mel, features, length in zip(mels, together, lengths.tolist(), strict=True):
        alone, one = encoder(mel[None], torch.tensor([len(mel)]))
        assert one.tolist() == [length] == [audio_tokens(encoder.arch, len(mel))]
        assert_close(features[:length], alone[0])


@torch.no_grad()
def test_frames_are_joined_and_the_last_token_is_filled_with_zeros():
    model = published()
    single, joined = ours(model, stack=1), ours(model, stack=4)
    mels, counts = torch.randn(2, 36, 80), torch.tensor([36, 25])  # 18 and 13 frames
    frames, tokens = single(mels, counts)[0], joined(mels, counts)[0]
    assert tokens.shape == (2, 5, 4 * 48) and joined.lengths(counts).tolist() == [5, 4]
    assert_close(tokens[0, 1], frames[0, 4:8].flatten())
    assert_close(tokens[0, 4], torch.cat((frames[0, 16:18].flatten(), torch.zeros(96))))
    assert_close(tokens[1, 3], torch.cat((frames[1, 12], torch.zeros(144))))


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.05, 1.234, 29.7, 30.0])
def test_the_log_mel_equals_the_feature_extractor(mels, seconds):
    arch, wave = WhisperArch(mels=mels), speech(seconds)
    mel = whisper_mel.log_mel(whisper_mel.mel_power(wave, arch))
    assert mel.shape == (whisper_mel.mel_frames(len(wave), arch), mels)
    assert len(mel) == min(int(seconds * 100 + 50 + 1e-6), 3000)
    wanted = extracted(wave, mels)
    assert_close(mel, wanted[:len(mel)])
    if len(mel) < 3000:  # what follows in 30 s is silence, and our last frames too
        assert torch.equal(mel[-10:], wanted[-10:])


def test_the_reader_reads_takes_for_whisper(tmp_path):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, speech(0.9).numpy(), 16_000, subtype="FLOAT")
    arch = WhisperArch(positions=70)  # 1.4 s: as long as the clip and its silence
    reader = MediaReader(VisionArch(), arch, seed=1)
    plain = reader.mel(path)
    assert len(plain) == 140 == reader.plain_frames(round(0.9 * 16_000))
    assert torch.equal(plain, whisper_mel.log_mel(whisper_mel.mel_power(audio.load(path), arch)))
    again, lengths = pickle.loads(pickle.dumps(reader)), set()
    for take in range(1, 12):
        mel = again.mel(path, take)
        assert torch.equal(mel, reader.mel(path, take)) and mel.shape[1] == 80 and mel.isfinite().all()
        assert len(mel) == reader.frames(path, take, len(plain)) <= 140
        lengths.add(len(mel))
    assert max(lengths) == 140 and len(lengths) > 3  # slow takes end where the positions end
    with pytest.raises(MediaError, match=r"0.9 s long, the encoder reads 0.6 s"):
        MediaReader(VisionArch(), WhisperArch(positions=30)).mel(path)
    with pytest.raises(ValueError, match="141 mel frames"):
        WhisperEncoder(arch)(torch.zeros(1, 141, 80), torch.tensor([141]))


@pytest.mark.parametrize("change, named", [
    ({"activation_function": "relu"}, "activation_function"), ({"scale_embedding": True}, "scale_embedding"),
    ({"model_type": "wav2vec2"}, "model_type"), ({"num_mel_bins": 81}, "num_mel_bins"),
    ({"d_model": "x"}, "d_model"), ({"encoder_layers": 0}, "encoder_layers"),
    ({"encoder_attention_heads": 5}, "encoder_attention_heads"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"max_source_positions": None}, "max_source_positions")])
def test_what_is_not_supported_is_refused_by_its_key(change, named):
    with pytest.raises(ValueError, match=named) as caught:
        WhisperEncoder.arch_of({**WhisperConfig(**SHAPE).to_dict(), **change})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


def test_a_missing_key_and_a_foreign_preprocessor_are_refused():
    config = WhisperConfig().to_dict()
    right = WhisperFeatureExtractor().to_dict()
    assert WhisperEncoder.arch_of(config, right) == WhisperArch()
    for key, value in {"n_fft": 512, "hop_length": 100, "feature_size": 128, "sampling_rate": 8000}.items():
        with pytest.raises(ValueError, match=f'"{key}" is {value}'):
            WhisperEncoder.arch_of(config, {**right, key: value})
    del config["d_model"]
    with pytest.raises(ValueError, match='"d_model" is missing'):
        WhisperEncoder.arch_of(config)


@torch.no_grad()
@pytest.mark.skipif("OMNI_WEIGHTS" not in os.environ, reason="OMNI_WEIGHTS names no folder of open weights")
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_published_weights_hear_what_they_hear_in_transformers(name):
    folder = Path(os.environ["OMNI_WEIGHTS"], name)
    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()
    arch = WhisperEncoder.arch_of(model.config.to_dict())
    encoder = WhisperEncoder(replace(arch, window="30s", stack=1)).eval()
    state = WhisperEncoder.rename(load_file(folder / "model.safetensors"))
    print(checkpoint.load_state(encoder, state, "audio_encoder", folder))
    waves = [audio.load(path) for path in CLIPS]
    mels, counts = pad_mels([whisper_mel.log_mel(whisper_mel.mel_power(wave, arch)) for wave in waves])
    got, lengths = encoder(mels, counts)
    for wave, features, length in zip(waves, got, lengths.tolist(), strict=True):
        wanted = model.encoder(extracted(wave).T[None]).last_hidden_state[0]
        assert_close(features[:length], wanted[:length], 1e-4)  # base: 3e-5 off its own result in fp64
