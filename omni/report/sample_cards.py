"""Held-out samples as cards: their media, the question, the reference and the generated answer."""

import base64
import io
from html import escape

import soundfile

from omni.base.errors import MediaError
from omni.data import audio, image
from omni.data.sample import AUDIO, IMAGE

SIDE = 320  # pixels of the longer side of a picture in a report, at most


def image_tag(path: str) -> str:
    """The picture as an <img> with a data: URL, no larger than SIDE; a note if it can't be read."""
    try:
        small = image.load_rgb(path)
    except MediaError as err:
        return unusable_note(path, err)
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f'<img alt="the picture asked about" loading="lazy" src="{data_url("image/webp", buffer)}">'


def audio_tag(path: str) -> str:
    """A player for the clip as the model hears it (mono, 16 kHz); a note if it can't be read."""
    try:
        wave = audio.load(path)
    except MediaError as err:
        return unusable_note(path, err)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.clamp(-1, 1).numpy(), audio.SAMPLE_RATE, format="MP3")
    return f'<audio controls preload="none" src="{data_url("audio/mpeg", buffer)}"></audio>'


def data_url(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def unusable_note(path: str, why: Exception) -> str:
    return f'<p class="soft">{escape(path.rsplit("/", 1)[-1])}: {escape(str(why))}</p>'


def escaped(text: str) -> str:
    """A question as HTML, without its placeholders."""
    return escape(text.replace(IMAGE, "").replace(AUDIO, "").strip())


def sample_card(sample: dict) -> str:
    """One sample. The reference is shown even if the answer equals it."""
    media = "".join(map(image_tag, sample["images"])) + "".join(map(audio_tag, sample["audios"]))
    before = "".join(f'<p class="soft">{escape(role)}: {escaped(text)}</p>'
                     for role, text in sample.get("before", ()))
    question = escaped(sample["question"]) or "(nothing is asked in words)"
    verdict = "right" if sample["right"] else "wrong"
    mark = "✓" if sample["right"] else "✗"
    return (f"<article>{media}{before}<p><b>{question}</b></p>"
            f'<p><span class="soft">reference:</span> {escape(sample["reference"])}</p>'
            f'<p class="{verdict}">{mark} {verdict}: {escape(sample["answer"]) or "(an empty answer)"}</p>'
            "</article>")


def sample_cards(samples: list[dict]) -> str:
    """The examples of a held-out set: those drawn at random, then the worst of the others."""
    parts = ""
    for why, title in (("random", "Drawn at random"), ("worst", "The worst of all others")):
        chosen = [sample for sample in samples if sample.get("why", "random") == why]
        right = sum(sample["right"] for sample in chosen)
        if chosen:
            parts += (f"<h3>{title} ({right} of {len(chosen)} right)</h3>"
                      f'<div class="cards">{"".join(map(sample_card, chosen))}</div>')
    return parts
