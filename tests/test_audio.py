"""Sound of any rate is read as 16 kHz mono or refused with a reason; padding never changes a feature."""

import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import DECODER_ERRORS, assert_refused

from omni.base.config import AudioArch
from omni.base.errors import UserError
from omni.chat import NamingReader
from omni.data import audio
from omni.data.collate import pad_mels
from omni.data.media_reader import MediaReader
from omni.model.audio_encoder import AudioEncoder


def sine(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate, channels):
    wave = sine(rate)
    soundfile.write(tmp_path / "a.wav", np.stack([wave * (c + 1) / channels for c in range(channels)], 1),
                    rate)
    clip = audio.load(tmp_path / "a.wav")
    assert clip.dtype == torch.float32 and clip.shape == (math.ceil(len(wave) * 16_000 / rate),)
    wanted = torch.from_numpy(sine(16_000)[:len(clip)]).float() * (channels + 1) / 2 / channels
    middle = slice(1000, 7000)  # the resampling filter runs off the clip at its edges
    assert (clip[middle] - wanted[middle]).abs().max() < 0.01


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "opus"])
def test_common_formats_are_read(tmp_path, ending):
    soundfile.write(tmp_path / f"a.{ending}", sine(16_000), 16_000, **(
        {"format": "OGG", "subtype": "OPUS"} if ending == "opus" else {}))
    clip = audio.load(tmp_path / f"a.{ending}")
    assert abs(len(clip) - 8000) < 2400 and clip.square().mean() == pytest.approx(0.125, rel=0.2)


@pytest.mark.parametrize("rate", [16_001, 44_099, 96_000, 192_000])
def test_resampling_an_odd_rate_takes_little_memory(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(rate, 0.1), rate)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), limit[1]))
    try:
        assert abs(len(audio.load(tmp_path / "a.wav")) - 1600) <= 2
    except audio.MediaError as err:
        assert "rate" in str(err)  # refusing it is fine too
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def write_bad(folder, name):
    path = folder / "a.wav"
    wave = sine(16_000)
    if name == "cut":
        soundfile.write(path, wave, 16_000)
        path.write_bytes(path.read_bytes()[:-4000])
    elif name == "cut flac" or name == "cut ogg":
        path = folder / f"a.{name[4:]}"
        soundfile.write(path, np.random.default_rng(0).standard_normal(16_000) * 0.3, 16_000)
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    elif name in ("nan", "infinite"):
        wave[100] = float(name.replace("infinite", "inf"))
        soundfile.write(path, wave, 16_000, subtype="FLOAT")
    elif name == "too short":
        soundfile.write(path, wave[:100], 16_000)
    elif name == "too long":
        soundfile.write(path, np.zeros(8000 * 31), 8000)
    elif name == "adpcm":
        soundfile.write(path, wave, 16_000, subtype="IMA_ADPCM")
    elif name == "nothing":
        path.write_bytes(b"")
    elif name == "html":
        path.write_text("<html>404</html>")
    elif name == "header alone":
        soundfile.write(path, wave[:0], 16_000)
    elif name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    return path


@pytest.mark.parametrize("name, reason", [
    ("cut", "cut short"), ("cut flac", ""), ("cut ogg", ""), ("nan", "NaN"), ("infinite", "infinite"),
    ("too short", "shorter"), ("too long", "limit"), ("adpcm", "ADPCM"), ("nothing", "not readable"),
    ("html", "not readable"), ("header alone", ""), ("folder", "not a regular file"),
    ("pipe", "not a regular file"),
    ("missing", "no such file")])
def test_bad_sound_is_refused_with_a_reason(tmp_path, name, reason):
    path = write_bad(tmp_path, name)
    with pytest.raises(audio.MediaError) as caught:
        audio.load(path)
    message = str(caught.value)
    assert message and reason in message and "\n" not in message and str(path) not in message


@pytest.mark.parametrize("error", DECODER_ERRORS, ids=repr)
@pytest.mark.parametrize("place", ["soundfile.SoundFile", "soundfile.SoundFile.read", "omni.data.media.head",
                                   "omni.data.media.source", "torchaudio.functional.resample"])
def test_whatever_a_decoder_raises_becomes_a_media_error(tmp_path, monkeypatch, place, error):
    monkeypatch.chdir(tmp_path)
    soundfile.write("PATH", sine(8_000), 8_000, format="WAV")

    def fail(*_args, **_options):
        raise error
    monkeypatch.setattr(place, fail)
    assert_refused(lambda: audio.load("PATH"))


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32"])
def test_a_codec_that_soundfile_cannot_read_is_refused(tmp_path, monkeypatch, subtype):
    """soundfile raises ValueError here, because libsndfile can't seek in these codecs."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("PATH", sine(8_000), 8_000, format="WAV", subtype=subtype)
    assert_refused(lambda: audio.load("PATH"), "not readable as sound")
    with pytest.raises(UserError, match="PATH: not readable as sound"):
        NamingReader(None, AudioArch()).mel("PATH")  # as omni.chat reads it


@given(st.integers(800, 40_000))
@settings(max_examples=40, deadline=None)
def test_the_number_of_mel_frames_follows_its_formula(samples):
    power = audio.mel_power(torch.randn(samples))
    assert power.shape == (audio.mel_frames(samples), audio.MELS)


def test_higher_tones_lie_in_higher_mel_bands():
    powers = [audio.mel_power(torch.from_numpy(sine(16_000, hertz=hertz)).float())
              for hertz in (300, 1000, 3000, 7000)]
    bands = [int(power.mean(0).argmax()) for power in powers]
    assert bands == sorted(set(bands)) and all(power.min() >= 0 for power in powers)


def test_loudness_does_not_change_the_log_mel_of_a_loud_clip():
    torch.manual_seed(0)  # a rare frame without power depends on the floor, and so on the loudness
    wave = torch.randn(8000) * 0.1
    soft, loud = (audio.log_mel(audio.mel_power(wave * gain)) for gain in (1, 3))
    assert (soft - loud).abs().max() < 0.05 and soft.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("level", ["clip", "speech"])
def test_silence_has_a_finite_log_mel(level):
    assert audio.log_mel(audio.mel_power(torch.zeros(8000)), level).isfinite().all()


def test_the_level_of_speech_does_not_depend_on_the_silence_around_it():
    torch.manual_seed(0)
    power = audio.mel_power(torch.randn(8000) * 0.1)
    padded = torch.cat((torch.zeros(70, audio.MELS), power, torch.zeros(30, audio.MELS)))
    plain, silent = (audio.log_mel(p, "speech") for p in (power, padded))
    torch.testing.assert_close(silent[70:-30], plain)
    assert not torch.allclose(audio.log_mel(padded)[70:-30], audio.log_mel(power), atol=0.5)


def test_noise_far_below_the_speech_hardly_changes_its_log_mel():
    torch.manual_seed(0)
    power = audio.mel_power(torch.sin(torch.arange(16000) / 8) * torch.linspace(0, 0.5, 16000))
    noisy = power + audio.mel_power(torch.randn(16000) * 1e-4)  # 65 dB below the tone
    speech = [audio.log_mel(p, "speech") for p in (power, noisy)]
    clip = [audio.log_mel(p) for p in (power, noisy)]
    assert (speech[0] - speech[1]).abs().max() < 0.1 < (clip[0] - clip[1]).abs().max()


@pytest.fixture(scope="module", params=[12.5, 25.0])
def encoder(request) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(AudioArch(width=24, layers=2, heads=2, mlp_width=32, stem_channels=4, conv_kernel=9,
                                  frames_per_second=request.param)).eval()


@torch.no_grad()
def test_padding_and_other_clips_of_a_batch_change_no_feature(encoder):
    mels = [torch.randn(frames, audio.MELS) for frames in (6, 7, 8, 9, 31, 64, 101)]
    together, lengths = encoder(*pad_mels(mels))
    for row, length, mel in zip(together, lengths, mels, strict=True):
        alone, alone_length = encoder(mel[None], torch.tensor([len(mel)]))
        assert alone.shape[1] == length == alone_length[0]
        assert torch.allclose(row[:length], alone[0], atol=1e-5)


def test_the_number_of_features_follows_its_formula(encoder):
    per_feature = 8 if encoder.arch.frames_per_second == 12.5 else 4
    for frames in (*range(1, 40), 3001):
        assert encoder.lengths(frames) == math.ceil(frames / per_feature)
    with torch.no_grad():
        for frames in (5, 16, 17):
            assert encoder(torch.randn(1, frames, audio.MELS), torch.tensor([frames]))[0].shape[1] == \
                encoder.lengths(frames)


@torch.no_grad()
def test_every_feature_depends_on_the_whole_clip(encoder):
    mel = torch.randn(1, 64, audio.MELS)
    changed = mel.clone()
    changed[0, 60:] += 1
    length = torch.tensor([64])
    assert not torch.allclose(encoder(mel, length)[0][0, 0], encoder(changed, length)[0][0, 0], atol=1e-6)


def test_a_take_depends_only_on_seed_take_and_file_name(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for name in ("a.wav", "b.wav"):
            soundfile.write(tmp_path / folder / name, sine(16_000), 16_000)
    path = str(tmp_path / "x" / "a.wav")
    reader = MediaReader(None, AudioArch(), 3)
    first = reader.mel(path, 1)
    reader.mel(str(tmp_path / "x" / "b.wav"), 2)
    assert torch.equal(first, reader.mel(path, 1))
    assert torch.equal(first, MediaReader(None, AudioArch(), 3).mel(str(tmp_path / "y" / "a.wav"), 1))
    plain = reader.mel(path, 0)
    assert torch.equal(plain, MediaReader(None, AudioArch(), 4).mel(path, 0))
    others = [reader.mel(path, 2), MediaReader(None, AudioArch(), 4).mel(path, 1),
              reader.mel(path[:-5] + "b.wav", 1), plain]
    assert all(o.shape != first.shape or not torch.equal(o, first) for o in others)


@given(seconds=st.floats(0.05, 12), seed=st.integers(0, 10**6), name=st.text("abc", min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_the_frames_of_a_take_are_known_without_decoding(tmp_path_factory, seconds, seed, name):
    path = str(tmp_path_factory.getbasetemp() / f"{name}.wav")
    soundfile.write(path, sine(16_000, seconds), 16_000)
    reader = MediaReader(None, AudioArch(), seed)
    power = reader.power(path)
    reader.power = lambda _: power
    plain = len(reader.mel(path))
    takes = {take: len(reader.mel(path, take)) for take in range(8)}
    reader.power = None  # decoding again would fail
    assert {take: reader.frames(path, take, plain) for take in takes} == takes


@given(st.integers(1, 4000), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_augmented_frames_are_those_of_augment(frames, seed):
    wanted = len(audio.augment(torch.rand(frames, audio.MELS), np.random.default_rng(seed)))
    assert audio.augmented_frames(frames, np.random.default_rng(seed)) == wanted


@given(st.integers(0, 10**6), st.integers(6, 300))
@settings(max_examples=40, deadline=None)
def test_augmented_sound_is_usable(seed, frames):
    power = torch.rand(frames, audio.MELS)
    varied = audio.augment(power, np.random.default_rng(seed))
    assert varied.shape[1] == audio.MELS and frames * 0.8 <= len(varied) <= max(8, frames * 1.2)
    assert varied.isfinite().all() and (varied >= 0).all()
    mel = audio.log_mel(varied)
    masked = audio.spec_augment(mel, np.random.default_rng(seed))
    assert masked.shape == mel.shape and ((masked == mel) | (masked == 0)).all()


@pytest.mark.real_data
def test_real_digits_are_read(real):
    for path in sorted((real / "fsdd").glob("*.wav"))[::100]:
        assert 0.05 * 16_000 <= len(audio.load(path)) <= 30 * 16_000
