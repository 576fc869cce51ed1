"""Decodes, checks and augments clips; computes log-mels. Waves are mono float32 at 16 kHz in [-1, 1]."""

import io
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
import torchaudio.functional as AF
from torch.nn import functional as F

from omni.base.errors import MediaError
from omni.data import media
from omni.data.batch import MEL_FRAMES_PER_SECOND, MELS

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples: 25 ms
HOP = SAMPLE_RATE // MEL_FRAMES_PER_SECOND  # samples: 10 ms
MIN_SECONDS, MAX_SECONDS = 0.05, 30.0
SLACK_SECONDS = 0.5  # how much later than its clip a segment may end
MAX_FILTER = 40_000_000  # bounds the resampling filter, which takes gigabytes at odd rates such as 16001 Hz
SILENCE = 1e-4  # power of the loudest silent frame / of the loudest frame: -40 dB
LOG_FLOOR = 1e-6  # added to the mel power before the logarithm: about the noise floor of 16-bit sound


def load(path: str | Path) -> torch.Tensor:
    """The clip (or segment) at `path` as 16 kHz mono: (samples,) float32. MediaError if it can't be used."""
    with media.only_media_errors("sound", path):
        file, start, end = media.split_segment(path)
        wave, rate = _decode(media.source(file), start, end)
        return wave if rate == SAMPLE_RATE else AF.resample(wave, rate, SAMPLE_RATE)


def _decode(source: str | io.BytesIO, start: float = 0.0,
            end: float | None = None) -> tuple[torch.Tensor, int]:
    """Mono samples (n,) float32 from `start` to `end` in seconds, and their rate in Hz."""
    try:
        with soundfile.SoundFile(source) as f:
            rate, declared = f.samplerate, f.frames
            if "ADPCM" in f.subtype:
                raise MediaError("ADPCM is not supported (unsafe in libsndfile 1.2.2)")
            if SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) * rate > MAX_FILTER:
                raise MediaError(f"sample rate {rate} Hz: resampling it would take gigabytes")
            first, last = round(start * rate), declared if end is None else round(end * rate)
            # Published times are rounded: a segment may end a little after its clip.
            if (first or end is not None) and not (first < min(last, declared)
                                                   and last <= declared + SLACK_SECONDS * rate):
                raise MediaError(f"its segment from {start:g} s to {last / rate:g} s is not within the "
                                 f"clip's {declared / rate:.2f} s")
            whole, declared = declared, min(last, declared) - first
            if declared > MAX_SECONDS * rate:
                raise MediaError(f"{declared / rate:.0f} s long, the limit is {MAX_SECONDS:.0f} s")
            if first:
                f.seek(first)
            # (samples, channels); some files can't be read in part
            sound = f.read(-1 if declared == whole else declared, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as err:
        raise MediaError(f"not readable as sound ({err.error_string})") from None  # str(err) holds the path
    _check_riff_size(source)
    if len(sound) < declared:  # libsndfile returns what there is of a truncated file, without an error
        raise MediaError(f"cut short: {len(sound)} of {declared} samples")
    wave = sound.mean(axis=1)
    if not np.isfinite(wave).all():
        raise MediaError("holds NaN or infinite samples")
    if len(wave) < MIN_SECONDS * rate:
        raise MediaError(f"shorter than {MIN_SECONDS} s")
    return torch.from_numpy(np.ascontiguousarray(wave)), rate


def _check_riff_size(source: str | io.BytesIO) -> None:
    """MediaError if a WAV file is shorter than its header says: libsndfile silently reads what there is."""
    head, file_size = media.head(source, 12)
    declared = int.from_bytes(head[4:8], "little")
    is_wav = head[:4] == b"RIFF" and head[8:] == b"WAVE"
    to_pipe = declared >= 0x7FFFFFFF  # programs that write to a pipe don't know the size
    if is_wav and not to_pipe and declared + 8 > file_size + 1:
        raise MediaError("cut short: the file is smaller than its header says")


@lru_cache(maxsize=1)
def _mel_transform() -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, n_fft=512, win_length=WINDOW, hop_length=HOP, n_mels=MELS, center=True, power=2.0,
        norm="slaney", mel_scale="slaney")


def mel_frames(samples: int) -> int:
    """Number of mel frames of a clip with `samples` samples at 16 kHz."""
    return samples // HOP + 1


def mel_power(wave: torch.Tensor) -> torch.Tensor:
    """Mel power spectrogram of one clip: (samples,) -> (F, MELS)."""
    return _mel_transform()(wave).T.contiguous()


def log_mel(power: torch.Tensor, level: str = "clip") -> torch.Tensor:
    """Mel power (F, MELS) -> normalised log-mel (F, MELS).

    Each band's mean is subtracted, which removes the effect of room and microphone, and the whole is scaled
    to a standard deviation of 1. With `level` "clip" these statistics are those of the whole clip. With
    "speech" they are those of the frames louder than silence, so the length of the pauses doesn't matter.
    Then a floor of SILENCE is added to the power too, so background noise below it doesn't matter.
    """
    energy = power.sum(dim=1)
    if level == "clip":
        counted = log = (power + LOG_FLOOR).log()
    else:
        floor = (SILENCE * energy.max() / power.shape[1]).clamp_min(LOG_FLOOR)
        log = (power + floor).log()
        counted = log[energy >= SILENCE * energy.max()]
    mean = counted.mean(dim=0, keepdim=True)
    return (log - mean) / (counted - mean).std().clamp_min(1e-3)


def augmented_frames(frames: int, rng: np.random.Generator, limit: float = math.inf) -> int:
    """How many frames `augment` turns `frames` into. Draws the speed, the first random number of a take."""
    return min(max(8, round(frames / rng.uniform(0.87, 1.18))), limit)


def augment(power: torch.Tensor, rng: np.random.Generator, limit: float = math.inf) -> torch.Tensor:
    """An augmented take of a clip, in mel power: (F, mels) -> (augmented_frames(F), mels).

    Varies speed, voice (the frequency axis is stretched, as by another vocal tract), spectral tilt, room (an
    exponential echo) and coloured noise. Working on mel power costs a hundredth of working on the waveform,
    and the encoders see nothing but mel anyway. A take isn't slowed beyond `limit` frames.
    """
    frames, bands = augmented_frames(len(power), rng, limit), power.shape[1]
    power = F.interpolate(power.T[None], size=frames, mode="linear")[0].T
    # Voice: band b of the new clip is band b / stretch of the old one.
    position = (torch.arange(bands) / rng.uniform(0.88, 1.13)).clamp(0, bands - 1)
    low = position.long().clamp(max=bands - 2)
    upper = position - low
    power = power[:, low] * (1 - upper) + power[:, low + 1] * upper
    tilt_db = torch.linspace(-1, 1, bands) * rng.uniform(-6, 6)
    power = power * 10 ** (tilt_db / 10)
    if rng.random() < 0.4:  # room: an echo that decays by 60 dB in t60 seconds
        t60 = rng.uniform(0.15, 0.6)
        lags = torch.arange(1, int(t60 * MEL_FRAMES_PER_SECOND * 0.6) + 1)
        kernel = 10 ** (-6 * lags / (t60 * MEL_FRAMES_PER_SECOND))
        kernel = kernel / kernel.sum() * rng.uniform(0.05, 0.4)
        padded = F.pad(power.T[:, None], (len(lags), 0))
        power = power + F.conv1d(padded, kernel.flip(0)[None, None])[:, 0, :frames].T
    if rng.random() < 0.6:
        snr_db = rng.uniform(8, 35)
        color = 10 ** (torch.linspace(1, -1, bands) * rng.uniform(-5, 15) / 10)
        level = power.mean() * 10 ** (-snr_db / 10)
        chi2 = torch.from_numpy(rng.chisquare(4, size=(frames, bands)).astype(np.float32) / 4)
        power = power + level * color / color.mean() * chi2
    return power


def spec_augment(mel: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """SpecAugment (Park et al. 2019): log-mel (F, mels) -> a copy with 2 time and 2 frequency masks of 0."""
    mel = mel.clone()
    frames, bands = mel.shape
    for _ in range(2):
        width = int(rng.integers(0, min(20, max(2, math.ceil(frames * 0.12)))))
        start = int(rng.integers(0, frames - width + 1))
        mel[start:start + width] = 0
        width = int(rng.integers(0, 15))
        start = int(rng.integers(0, bands - width + 1))
        mel[:, start:start + width] = 0
    return mel
