"""Decodes, checks and augments an image: square RGB floats in [-1, 1] for the vision encoder."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from omni.base.errors import MediaError
from omni.data import media

MAX_PIXELS = 40_000_000  # checked in the header, before decoding
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM",  # no other decoder may run on users' files
           *(("AVIF",) if features.check("avif") else ()))


def load(path: str | Path, size: int, squash: str | None = None) -> torch.Tensor:
    """The image at `path`: (3, size, size) float32 in [-1, 1]. MediaError if it can't be used.

    It is rotated as its EXIF data says, transparency becomes white, 16-bit grey is scaled to 8 bits, and of
    an animation the first frame is read. An image that isn't square is fitted into the square and padded
    with white: nothing is cropped or distorted. With `squash` "bicubic" or "bilinear" it is distorted to the
    square instead.
    """
    with media.only_media_errors("an image", path):
        rgb = _decode(media.source(path))
        if squash:
            rgb = rgb.resize((size, size), Image.Resampling[squash.upper()])
        elif rgb.size != (size, size):
            rgb = ImageOps.pad(rgb, (size, size), method=Image.Resampling.BICUBIC, color=(255, 255, 255))
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
        return pixels.float().div_(127.5).sub_(1)


def load_rgb(path: str | Path) -> Image.Image:
    """The image at `path` in its own size, upright and in RGB. MediaError if it can't be used."""
    with media.only_media_errors("an image", path):
        return _decode(media.source(path))


def _decode(source: str | io.BytesIO) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    limit = MAX_PIXELS // 1_000_000
                    raise MediaError(f"{width}x{height} pixels, the limit is {limit} megapixels")
                picture.load()
                return _to_rgb(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError("not an image in a known format, or too large") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I;16", "I", "F")):  # Pillow's own conversion clips 16 bits to white
        values = np.asarray(picture, dtype=np.float64)
        full = 65535 if values.max() > 255 else 255
        return Image.fromarray((values / full * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


class Placement(NamedTuple):
    """How `augment` moves an image: first mirrored, then shifted, then scaled."""

    scale: float
    right: float  # in half widths
    down: float  # in half heights
    mirrored: bool = False


def placement(rng: np.random.Generator, photograph: bool = False) -> Placement:
    """A random Placement; photographs are moved further, and half of them are mirrored."""
    if photograph:
        return Placement(rng.uniform(0.85, 1.15), *rng.uniform(-0.2, 0.2, size=2), bool(rng.random() < 0.5))
    return Placement(rng.uniform(0.92, 1.08), *rng.uniform(-0.06, 0.06, size=2))


def moved(box: tuple[float, ...], placed: Placement) -> tuple[float, ...]:
    """Where a box (left, top, right, bottom as fractions of the sides) is after the image was moved."""
    left, top, right, bottom = box
    if placed.mirrored:
        left, right = 1 - right, 1 - left
    shift = (placed.right, placed.down)
    return tuple(min(max(((2 * v - 1 + shift[i % 2]) * placed.scale + 1) / 2, 0.0), 1.0)
                 for i, v in enumerate((left, top, right, bottom)))


def augment(pixels: torch.Tensor, rng: np.random.Generator, photograph: bool = False) -> torch.Tensor:
    """An augmented take of an image (3, height, width): position, size, brightness, contrast and noise vary.

    Hue is kept, because questions name colors. Only photographs are mirrored, because elsewhere left, right
    and letters have a meaning. In photographs a square is hidden too (Cutout, DeVries and Taylor 2017).
    """
    height, width = pixels.shape[1:]
    placed = placement(rng, photograph)
    side = -1 if placed.mirrored else 1
    theta = torch.tensor([[[side / placed.scale, 0, -side * placed.right],
                           [0, 1 / placed.scale, -placed.down]]], dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(theta, [1, 3, height, width], align_corners=False)
    pixels = torch.nn.functional.grid_sample(
        pixels[None], grid, padding_mode="border", align_corners=False)[0]
    pixels = pixels * rng.uniform(0.85, 1.15) + rng.uniform(-0.1, 0.1)
    if photograph:
        hidden = height // 4
        top, left = rng.integers(0, height - hidden, size=2)
        pixels[:, top:top + hidden, left:left + hidden] = 0
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    return (pixels + noise * rng.uniform(0, 0.04)).clamp(-1, 1)
