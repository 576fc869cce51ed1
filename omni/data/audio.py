"""One decoded, checked clip, and its log-mel. Sound is mono float32 at 16 kHz in [-1, 1] everywhere else."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
import torchaudio.functional as AF
from torch.nn import functional as F

from omni.data import media
from omni.data.batch import MEL_FRAMES_PER_SECOND, MELS
from omni.errors import MediaError

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples: 25 ms
HOP = SAMPLE_RATE // MEL_FRAMES_PER_SECOND  # samples: 10 ms
MIN_SECONDS, MAX_SECONDS = 0.05, 30.0
MAX_FILTER = 40_000_000  # grows with the resampler's filter: odd rates such as 16001 Hz would take gigabytes
SILENCE = 1e-4  # of the loudest frame's power: 40 dB below it
LOG_FLOOR = 1e-6  # of the mel power, added before the logarithm: about the noise floor of 16-bit sound


def load(path: str | Path) -> torch.Tensor:
    """The clip at `path`, mixed down and resampled: (samples,) float32. Raises MediaError with the reason."""
    source = media.source(path)
    try:
        with soundfile.SoundFile(source) as f:
            rate, promised = f.samplerate, f.frames
            if "ADPCM" in f.subtype:
                raise MediaError("ADPCM sound is not read (unsafe in libsndfile 1.2.2)")
            if SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) * rate > MAX_FILTER:
                raise MediaError(f"sample rate {rate} Hz: resampling it would take gigabytes")
            if promised > MAX_SECONDS * rate:
                raise MediaError(f"{promised / rate:.0f} s long, the limit is {MAX_SECONDS:.0f} s")
            sound = f.read(dtype="float32", always_2d=True)  # (samples, channels)
    except soundfile.LibsndfileError as err:
        raise MediaError(f"not readable as sound ({err.error_string})") from None  # its text holds no path
    except (RuntimeError, OSError) as err:
        raise MediaError(f"not readable as sound ({type(err).__name__})") from None
    head, there = media.head(source, 12)  # libsndfile trims what a WAV promises to what is there
    size = int.from_bytes(head[4:8], "little")
    known = head[:4] == b"RIFF" and head[8:] == b"WAVE" and size < 0x7FFFFFFF  # larger: written to a pipe
    if known and size + 8 > there + 1:
        raise MediaError("cut short: the file is smaller than its header says")
    if len(sound) < promised:  # libsndfile returns what it has of a cut file, without an error
        raise MediaError(f"cut short: {len(sound)} of {promised} samples")
    wave = sound.mean(axis=1)
    if not np.isfinite(wave).all():
        raise MediaError("holds NaN or infinite samples")
    if len(wave) < MIN_SECONDS * rate:
        raise MediaError(f"shorter than {MIN_SECONDS} s")
    wave = torch.from_numpy(np.ascontiguousarray(wave))
    return wave if rate == SAMPLE_RATE else AF.resample(wave, rate, SAMPLE_RATE)


@lru_cache(maxsize=1)
def _mel_transform() -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, n_fft=512, win_length=WINDOW, hop_length=HOP, n_mels=MELS, center=True, power=2.0,
        norm="slaney", mel_scale="slaney")


def mel_frames(samples: int) -> int:
    """Number of mel frames of a clip of so many samples."""
    return samples // HOP + 1


def mel_power(wave: torch.Tensor) -> torch.Tensor:
    """Mel power spectrogram of one clip: (samples,) -> (F, MELS)."""
    return _mel_transform()(wave).T.contiguous()


def log_mel(power: torch.Tensor, level: str = "clip") -> torch.Tensor:
    """(F, MELS) power -> log-mel of unit scale, less its mean a band (so without room and microphone).

    Mean and scale are those of the whole clip, or of its `level` "speech" alone: then they don't depend on
    how much of the clip is silence, nor what lies below the speech on how clean the recording is, for a floor
    of SILENCE is laid under it.
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


def augment(power: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A varied take of a clip, in the domain of mel power: (F, MELS) -> (F', MELS).

    Speed, voice (a stretch of the frequency axis, as another vocal tract would), spectral tilt, room (an
    exponential echo) and coloured noise. Working on mel power costs a hundredth of doing it to the waveform,
    and frozen features never see more than mel anyway.
    """
    frames, bands = power.shape
    speed = rng.uniform(0.87, 1.18)
    power = F.interpolate(power.T[None], size=max(8, round(frames / speed)), mode="linear")[0].T
    frames = len(power)
    # Voice: band b of the new clip is band b / warp of the old one.
    position = (torch.arange(bands) / rng.uniform(0.88, 1.13)).clamp(0, bands - 1)
    low = position.long().clamp(max=bands - 2)
    share = position - low
    power = power[:, low] * (1 - share) + power[:, low + 1] * share
    tilt_db = torch.linspace(-1, 1, bands) * rng.uniform(-6, 6)
    power = power * 10 ** (tilt_db / 10)
    if rng.random() < 0.4:  # room: energy decays by 60 dB in t60 seconds, mixed with the direct sound
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
    """SpecAugment (Park et al. 2019) on a log-mel (F, MELS): two masks each in time and frequency, of 0."""
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
