"""Odd files as in real data sets, each with the expected content or the expected reason of its refusal."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

RED, SIZE = (200, 30, 40), 48
SOUND = 440  # Hz, of every tone


def picture(color=RED, size=(SIZE, SIZE), mode="RGB") -> Image.Image:
    return Image.new(mode, size, color)


def corner() -> Image.Image:
    """White with a red top left corner, to see how the picture is rotated."""
    shown = picture("white")
    shown.paste(RED, (0, 0, 16, 24))
    return shown


def encoded(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(form: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), form)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body=b"", extra=b"", bits: int = 8, color: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body))
            + chunk(b"IEND", b""))


def tone(rate: int = 16_000, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
    t = np.arange(int(rate * seconds)) / rate
    return np.repeat((0.5 * np.sin(2 * np.pi * SOUND * t))[:, None], channels, axis=1)


def wav(samples=None, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(rate) if samples is None else samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def with_sample(value: float, subtype: str = "FLOAT") -> bytes:
    samples = tone()
    samples[77] = value
    return wav(samples, subtype=subtype)


def flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1:]


def rotated(orientation: int) -> bytes:
    T = Image.Transpose
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
            7: T.TRANSVERSE, 8: T.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(corner().transpose(undo[orientation]), "PNG", exif=exif)


def palette(**options) -> bytes:
    image = picture(1, mode="P")
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG", **options)


def frames(form: str) -> bytes:
    return encoded(picture(), form, save_all=True, append_images=[picture("blue"), picture("green")])


WHITE, GREY = (255, 255, 255), (128, 128, 128)
HTML = b"<!doctype html><html><script>alert(1)</script>404 Not Found</html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9" onload="alert(1)"/></svg>'
# name -> (content, the color of its center, or a part of the reason why it must be refused)
PICTURES: dict[str, tuple[bytes, tuple | str]] = {
    "zero.png": (b"", "not an image"), "html.jpg": (HTML, "not an image"),
    "svg.jpg": (SVG, "not an image"),
    "pdf.png": (b"%PDF-1.4\n%...", "not an image"), "zip.png": (b"PK\x03\x04" + bytes(50), "not an image"),
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "ico.png": (encoded(picture(), "ICO"), "not an image"),
    "psd.jpg": (b"8BPS\0\1" + bytes(40), "not an image"),
    "sound.png": (wav(), "not an image"), "text.png": (b"cat.png\n", "not an image"),
    "magic_alone.png": (b"\x89PNG\r\n\x1a\n", ""), "magic_alone.gif": (b"GIF89a", ""),
    "magic_alone.jpg": (b"\xff\xd8\xff", ""), "magic_alone.webp": (b"RIFF\x08\0\0\0WEBPVP8 ", ""),
    "header_alone.png": (png(100, 100), ""), "bomb.png": (png(30_000, 30_000), "too large"),
    "bomb_1_bit.png": (png(30_000, 30_000, bits=1, color=0), "too large"),
    "large.png": (png(8_000, 8_000), "limit"),
    "no_width.png": (png(0, 10), ""), "text_bomb.png": (
        png(8, 8, bytes(200), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))), ""),
    "header_flipped.png": (flipped(noise("PNG"), 18), ""),
    "body_flipped.png": (flipped(noise("PNG"), 60), ""),
    **{f"half.{form.lower()}": (noise(form)[:len(noise(form)) // 2], "")
       for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")},
    "half.gif": (encoded(Image.effect_noise((SIZE, SIZE), 90), "GIF")[:500], ""),
    "png_as.jpg": (encoded(picture(), "PNG"), RED),
    "jpeg_as.png": (encoded(picture(), "JPEG", quality=95), RED),
    "no_ending": (encoded(picture(), "WEBP", lossless=True), RED),
    "newline\nin.png": (encoded(picture(), "PNG"), RED),
    "ünï<script>.png": (encoded(picture(), "PNG"), RED),
    "progressive.jpg": (encoded(picture(), "JPEG", quality=95, progressive=True), RED),
    "grey.jpg": (encoded(picture(128, mode="L"), "JPEG"), GREY),
    "bits.png": (encoded(picture(1, mode="1"), "PNG"), WHITE),
    "cmyk.jpg": (encoded(picture((0, 255, 255, 0), mode="CMYK"), "JPEG", quality=95), (254, 0, 0)),
    "grey_16.png": (encoded(Image.fromarray(np.full((SIZE, SIZE), 32_896, np.uint16)), "PNG"), GREY),
    "grey_16.tiff": (encoded(Image.fromarray(np.full((SIZE, SIZE), 32_896, np.uint16)), "TIFF"), GREY),
    "rgb_16.png": (
        png(SIZE, SIZE, (b"\0" + b"".join(bytes([c, c]) for c in RED) * SIZE) * SIZE, bits=16), RED),
    "float.tiff": (encoded(Image.fromarray(np.full((SIZE, SIZE), 128, np.float32)), "TIFF"), GREY),
    "clear.png": (encoded(picture((0, 0, 0, 0), mode="RGBA"), "PNG"), WHITE),
    "half_clear.png": (encoded(picture((255, 0, 0, 128), mode="RGBA"), "PNG"), (255, 127, 127)),
    "grey_clear.png": (encoded(picture((0, 0), mode="LA"), "PNG"), WHITE),
    "palette.png": (palette(), RED), "palette_clear.png": (palette(transparency=1), WHITE),
    "palette_alpha.png": (palette(transparency=bytes([255, 0])), WHITE),
    "clear.gif": (encoded(picture((0, 0, 0, 0), mode="RGBA"), "GIF"), WHITE),
    "moving.gif": (frames("GIF"), RED), "moving.webp": (frames("WEBP"), RED),
    "moving.png": (frames("PNG"), RED),
    "pages.tiff": (frames("TIFF"), RED), "one.png": (encoded(picture(size=(1, 1)), "PNG"), RED),
    "thread.png": (encoded(picture(size=(1, 9_000)), "PNG"), ""),
    "line.png": (encoded(picture(size=(9_000, 1)), "PNG"), ""),
    **{f"exif_{orientation}.png": (rotated(orientation), "corner") for orientation in range(2, 9)}}

# name -> (content, True if the tone must be read, or a part of the reason why it must be refused)
SOUNDS: dict[str, tuple[bytes, bool | str]] = {
    "zero.wav": (b"", "not readable"), "html.wav": (HTML, "not readable"),
    "picture.wav": (noise("PNG"), "not readable"),
    "midi.wav": (b"MThd" + bytes(20), "not readable"),
    "text.mp3": (b"a song\n" * 9, "not readable"),
    "no_samples.wav": (wav(tone()[:0]), ""), "short.wav": (wav(tone(seconds=0.01)), "shorter"),
    "half.wav": (wav()[:4_000], "cut short"), "half.flac": (wav(form="FLAC")[:2_000], ""),
    "half.ogg": (wav(form="OGG")[:2_500], ""), "half.mp3": (wav(form="MP3")[:1_000], "cut short"),
    "header_alone.wav": (wav()[:44], ""), "magic_alone.wav": (b"RIFF\x24\0\0\0WAVE", ""),
    "nan.wav": (with_sample(np.nan), "NaN"), "inf.wav": (with_sample(np.inf), "infinite"),
    "minus_inf.wav": (with_sample(-np.inf, "DOUBLE"), "infinite"), "hour.wav": (
        wav(np.zeros(3600 * 8_000, np.int16), 8_000, subtype="PCM_U8"), "limit"),
    "hour.flac": (wav(np.zeros(3600 * 8_000, np.int16), 8_000, "FLAC"), "limit"),
    "adpcm.wav": (wav(subtype="IMA_ADPCM"), "ADPCM"), "ms_adpcm.wav": (wav(subtype="MS_ADPCM"), "ADPCM"),
    **{f"{sub.lower()}.wav": (wav(rate=8_000, subtype=sub), "not readable") for sub in ("GSM610", "G721_32")},
    "lying_length.wav": (wav()[:4] + struct.pack("<I", 2_000_000) + wav()[8:], "cut short"),
    "rate_0.wav": (wav()[:24] + struct.pack("<I", 0) + wav()[28:], ""),
    "rate_1.wav": (wav()[:24] + struct.pack("<I", 1) + wav()[28:], ""),
    "rate_4e9.wav": (wav()[:24] + struct.pack("<I", 4_000_000_007) + wav()[28:], ""),
    "channels_0.wav": (wav()[:22] + struct.pack("<H", 0) + wav()[24:], ""),
    "channels_65535.wav": (wav()[:22] + struct.pack("<H", 65_535) + wav()[24:], ""),
    **{f"rate_{rate}.wav": (wav(rate=rate), True)
       for rate in (8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000)},
    **{f"channels_{n}.wav": (wav(tone(channels=n)), True) for n in (2, 6, 8)},
    **{f"{sub.lower()}.wav": (wav(subtype=sub), True)
       for sub in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")},
    **{f"tone.{form.lower()}": (wav(form=form), True)
       for form in ("FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64")},
    "opus.ogg": (wav(form="OGG", subtype="OPUS"), True),
    "loud.wav": (wav(tone() * 9, subtype="FLOAT"), True),
    "wav_as.mp3": (wav(), True), "ogg_as.wav": (wav(form="OGG"), True), "no_ending": (wav(), True)}


def loop(path: Path) -> None:
    path.symlink_to(path)


# name -> function that creates it; none is a regular file
IRREGULAR: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir, "pipe": os.mkfifo, "missing": lambda path: None, "loop": loop,
    "dangling": lambda path: path.symlink_to("nowhere"), "endless": lambda path: path.symlink_to("/dev/zero"),
    "x" * 300: lambda path: None}
