"""Held-out samples as cards: what was seen and heard, what was asked, the reference, the answer."""

import base64
import io
from html import escape

import soundfile
from PIL import Image

from omni.data import audio, image, media
from omni.data.sample import AUDIO, IMAGE
from omni.errors import MediaError

SIDE = 320  # pixels of a picture's longer side in a report


def picture(path: str) -> str:
    """The picture as an <img> of a data URL, no larger than SIDE."""
    try:
        image.load(path, 16)  # refuses what a run refuses
        with Image.open(media.source(path), formats=image.FORMATS) as original:
            small = original.convert("RGB")
    except (MediaError, OSError) as err:
        return missing(path, err)
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f'<img alt="the picture asked about" loading="lazy" src="{data_url("image/webp", buffer)}">'


def player(path: str) -> str:
    """A player for the sound as the model hears it: mono, 16 kHz."""
    try:
        wave = audio.load(path)
    except (MediaError, OSError) as err:
        return missing(path, err)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.clamp(-1, 1).numpy(), audio.SAMPLE_RATE, format="MP3")
    return f'<audio controls preload="none" src="{data_url("audio/mpeg", buffer)}"></audio>'


def data_url(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def missing(path: str, why: Exception) -> str:
    return f'<p class="soft">{escape(path.rsplit("/", 1)[-1])}: {escape(str(why))}</p>'


def plain(text: str) -> str:
    return escape(text.replace(IMAGE, "").replace(AUDIO, "").strip())


def card(sample: dict) -> str:
    """One sample. The reference is shown even where the answer equals it."""
    shown = "".join(map(picture, sample["images"])) + "".join(map(player, sample["audios"]))
    before = "".join(f'<p class="soft">{escape(role)}: {plain(text)}</p>'
                     for role, text in sample.get("before", ()))
    question = plain(sample["question"]) or "(nothing is asked in words)"
    verdict = "right" if sample["right"] else "wrong"
    mark = "✓" if sample["right"] else "✗"
    return (f"<article>{shown}{before}<p><b>{question}</b></p>"
            f'<p><span class="soft">reference:</span> {escape(sample["reference"])}</p>'
            f'<p class="{verdict}">{mark} {verdict}: {escape(sample["answer"]) or "(an empty answer)"}</p>'
            "</article>")


def cards(samples: list[dict]) -> str:
    """The worst of a held-out set, and some drawn at random."""
    parts = ""
    for why, title in (("random", "Drawn at random"), ("worst", "The worst of all others")):
        chosen = [sample for sample in samples if sample.get("why", "random") == why]
        right = sum(sample["right"] for sample in chosen)
        if chosen:
            parts += (f"<h3>{title} ({right} of {len(chosen)} right)</h3>"
                      f'<div class="cards">{"".join(map(card, chosen))}</div>')
    return parts
