"""Whisper's log-mel (Radford et al. 2022). Waves are mono float32 at 16 kHz in [-1, 1]."""

import math
from functools import lru_cache

import torch

from omni.base.config import WhisperArch
from omni.base.errors import MediaError
from omni.data.audio import HOP, SAMPLE_RATE, WINDOW

SILENCE = SAMPLE_RATE // 2  # samples added to a clip: Whisper mishears the end if sound stops with the clip


def max_frames(arch: WhisperArch) -> int:
    """Mel frames that the encoder has positions for."""
    return 2 * arch.positions


def mel_frames(samples: int, arch: WhisperArch) -> int:
    """Number of mel frames of a clip with `samples` samples, silence included."""
    return min((samples + SILENCE) // HOP, max_frames(arch))


def mel_power(wave: torch.Tensor, arch: WhisperArch) -> torch.Tensor:
    """Mel power of a clip and half a second of silence: (samples,) -> (F, mels).

    The silence is shorter if the encoder has no positions for it. MediaError if it has none for the clip.
    """
    limit = max_frames(arch) * HOP
    if len(wave) > limit:
        raise MediaError(f"{len(wave) / SAMPLE_RATE:.1f} s long, the encoder reads {limit / SAMPLE_RATE:g} s")
    wave = torch.nn.functional.pad(wave, (0, min(SILENCE, limit - len(wave))))
    # Centred: the ends are mirrored. The last frame is dropped, as everywhere that Whisper is used.
    spectrum = torch.stft(wave, WINDOW, HOP, window=_window(), return_complex=True)[:, :-1]
    return (_filters(arch.mels) @ spectrum.abs().square()).T.contiguous()


def log_mel(power: torch.Tensor) -> torch.Tensor:
    """Mel power (F, mels) -> log-mel (F, mels), cut 80 dB below the loudest and scaled to about [-1, 1]."""
    log = power.clamp_min(1e-10).log10()
    return (log.maximum(log.max() - 8) + 4) / 4


@lru_cache(maxsize=1)
def _window() -> torch.Tensor:
    return torch.hann_window(WINDOW)


@lru_cache(maxsize=2)
def _filters(mels: int) -> torch.Tensor:
    """(mels, WINDOW / 2 + 1) triangles of area 1 on Slaney's mel scale: linear to 1 kHz, then logarithmic.

    Computed in float64, because narrow triangles have weights that are small differences.
    """
    kink, step = 1000.0, math.log(6.4) / 27  # Hz; logarithm of the ratio of neighbouring mels above it
    top = kink * 3 / 200 + math.log(SAMPLE_RATE / 2 / kink) / step
    mel = torch.linspace(0, top, mels + 2, dtype=torch.float64)
    hertz = torch.where(mel < kink * 3 / 200, mel * 200 / 3, kink * ((mel - kink * 3 / 200) * step).exp())
    bins = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, peak, high = (edge[:, None] for edge in (hertz[:-2], hertz[1:-1], hertz[2:]))
    triangles = torch.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)).clamp_min(0)
    return (triangles * 2 / (high - low)).float()
