"""Free speech synthesisers behind one interface: from voices and sentences to 16 kHz waveforms."""

import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000
MIN_SECONDS, MAX_SECONDS = 0.6, 4.0
EDGE_SECONDS = 0.08  # silence kept before and after the words

# voice -> (share of the clips, usual pitch in Hz, or 0 if the engine takes no pitch in Hz)
TRAIN_VOICES = {
    "flite_awb": (0.16, 130), "flite_slt": (0.16, 175), "flite_kal16": (0.10, 105),
    "festival_kal": (0.08, 105), "festival_ked": (0.16, 105), "festival_slt_hts": (0.08, 0),
    "espeak": (0.26, 0),  # all accents and variants below
}
UNSEEN_VOICE = "flite_rms"  # no other engine has this speaker
ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
ESPEAK_VARIANTS = tuple(f"m{i}" for i in range(1, 8)) + tuple(f"f{i}" for i in range(1, 5))
FESTIVAL_NAMES = {
    "festival_kal": "voice_kal_diphone", "festival_ked": "voice_ked_diphone",
    "festival_slt_hts": "voice_cmu_us_slt_arctic_hts",
}


@dataclass(frozen=True)
class Clip:
    """A clip to speak: file to write, words, voice, and speed and pitch relative to the voice's own."""

    path: str
    text: str
    voice: str
    speed: float
    pitch: float


def draw_voices(count: int, rng: random.Random) -> list[str]:
    """`count` training voices in the proportions of TRAIN_VOICES, shuffled."""
    voices = []
    for name, (share, _) in TRAIN_VOICES.items():
        for _ in range(round(share * count)):
            accent, variant = rng.choice(ESPEAK_ACCENTS), rng.choice(ESPEAK_VARIANTS)
            voices.append(f"espeak_{accent}+{variant}" if name == "espeak" else name)
    while len(voices) < count:
        voices.append(rng.choice(("flite_awb", "flite_slt", "festival_ked")))
    rng.shuffle(voices)
    return voices[:count]


def make_clip(path: str, text: str, voice: str, rng: random.Random) -> Clip:
    """A clip with random speed and pitch, within limits that keep it easy to understand."""
    return Clip(path, text, voice, round(rng.uniform(0.9, 1.18), 3), round(rng.uniform(0.9, 1.12), 3))


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _speak_flite(clip: Clip, wav: Path) -> None:
    name = clip.voice.removeprefix("flite_")
    base = TRAIN_VOICES[clip.voice][1] if clip.voice in TRAIN_VOICES else 100
    _run(["flite", "-voice", name, "--setf", f"duration_stretch={1 / clip.speed:.3f}",
          "--setf", f"int_f0_target_mean={base * clip.pitch:.1f}", "-t", clip.text, "-o", str(wav)])


def _speak_espeak(clip: Clip, wav: Path) -> None:
    _run(["espeak-ng", "-v", clip.voice.removeprefix("espeak_"), "-s", str(round(158 * clip.speed)),
          "-p", str(round(50 + 150 * (clip.pitch - 1))), "-w", str(wav), clip.text])


def _speak_festival(clips: list[Clip], wavs: list[Path], folder: Path) -> None:
    """Many clips in one process, because Festival takes half a second to start."""
    script, voice = [], None
    for clip, wav in zip(clips, wavs, strict=True):
        if clip.voice != voice:
            voice = clip.voice
            script.append(f"({FESTIVAL_NAMES[voice]})")
        base = TRAIN_VOICES[voice][1]
        if base:  # the HTS voice ignores both settings; speech() resamples it instead
            script.append(f"(Parameter.set 'Duration_Stretch {1 / clip.speed:.3f})")
            script.append(f"(set! int_lr_params '((target_f0_mean {base * clip.pitch:.1f}) "
                          "(target_f0_std 14) (model_f0_mean 170) (model_f0_std 34)))")
        script.append(f'(utt.save.wave (utt.synth (Utterance Text "{clip.text}")) "{wav}" \'riff)')
    path = folder / "batch.scm"
    path.write_text("\n".join(script) + "\n", encoding="utf-8")
    _run(["festival", "-b", str(path)])


def resample(wave: np.ndarray, source: float, target: float) -> np.ndarray:
    """Resample by cutting the spectrum. Only for short clips with silent ends."""
    count = round(len(wave) * target / source)
    if count == len(wave):
        return wave
    spectrum = np.fft.rfft(wave)[: count // 2 + 1]
    return np.fft.irfft(spectrum, count) * (count / len(wave))


def tidy(wave: np.ndarray) -> np.ndarray:
    """Cut silence at both ends down to EDGE_SECONDS, set the peak to 0.7, pad to at least MIN_SECONDS."""
    frame = RATE // 100
    count = len(wave) // frame
    energy = np.sqrt((wave[: count * frame].reshape(count, frame) ** 2).mean(1))
    loud = np.flatnonzero(energy > 0.015 * energy.max())
    edge = int(EDGE_SECONDS * RATE)
    wave = wave[max(0, loud[0] * frame - edge) : (loud[-1] + 1) * frame + edge]
    wave = 0.7 * wave / np.abs(wave).max()
    missing = max(0, int(MIN_SECONDS * RATE) + 1 - len(wave))
    return np.pad(wave, (missing // 2, missing - missing // 2)).astype(np.float32)


def speech(clips: list[Clip]) -> list[np.ndarray]:
    """The waveforms of the clips at 16 kHz, trimmed, with equal peaks, of any length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wavs = [folder / f"{i}.wav" for i in range(len(clips))]
        festival = [i for i, clip in enumerate(clips) if clip.voice in FESTIVAL_NAMES]
        if festival:
            _speak_festival([clips[i] for i in festival], [wavs[i] for i in festival], folder)
        waves = []
        for clip, wav in zip(clips, wavs, strict=True):
            if clip.voice.startswith("flite_"):
                _speak_flite(clip, wav)
            elif clip.voice.startswith("espeak_"):
                _speak_espeak(clip, wav)
            wave, rate = sf.read(wav)
            if clip.voice == "festival_slt_hts":  # makes it faster and higher, or slower and lower
                rate *= 1 + 0.6 * (clip.pitch - 1)
            waves.append(tidy(resample(wave, rate, RATE)))
    return waves


def write_clips(clips: list[Clip]) -> list[float | None]:
    """Write the clips as Ogg/Opus. Returns their seconds; None for a clip too long even at speed 1.25."""
    waves = speech(clips)
    longer = [i for i, wave in enumerate(waves) if len(wave) > MAX_SECONDS * RATE]
    if longer:
        faster = [Clip(c.path, c.text, c.voice, 1.25, c.pitch) for c in (clips[i] for i in longer)]
        for i, wave in zip(longer, speech(faster), strict=True):
            waves[i] = wave
    seconds: list[float | None] = []
    for clip, wave in zip(clips, waves, strict=True):
        if len(wave) > MAX_SECONDS * RATE:
            seconds.append(None)
            continue
        # About 17 kbit/s: as easy to recognise as lossless files, at a tenth of their size.
        sf.write(clip.path, wave, RATE, format="OGG", subtype="OPUS", compression_level=0.97)
        seconds.append(len(wave) / RATE)
    return seconds
