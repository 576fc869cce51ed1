"""One decoded, checked picture: RGB float in [-1, 1], square, of the size that the vision encoder wants."""

import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from omni.data import media
from omni.errors import MediaError

MAX_PIXELS = 40_000_000  # a larger picture is refused from its header, before it is decoded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # the decoders that may run on users' files


def load(path: str | Path, size: int) -> torch.Tensor:
    """The picture at `path`: (3, size, size) float32. Raises MediaError with the reason.

    Rotated as its EXIF says, transparency laid on white, 16-bit grey scaled to 8, the first frame of an
    animation. A picture that is not square is fitted into the square and padded with white: nothing is cut
    off or distorted.
    """
    source = media.source(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    limit = MAX_PIXELS // 1_000_000
                    raise MediaError(f"{width}x{height} pixels, the limit is {limit} megapixels")
                picture.load()
                rgb = _to_rgb(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError("not a picture in a known format, or too large") from None
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, TypeError, struct.error) as err:
        raise MediaError(f"not readable as a picture ({str(err)[:80]})") from None
    if rgb.size != (size, size):
        rgb = ImageOps.pad(rgb, (size, size), method=Image.Resampling.BICUBIC, color=(255, 255, 255))
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    return pixels.float().div_(127.5).sub_(1)


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I;16", "I", "F")):  # Pillow's conversion clips 16 bit: nearly all is white
        values = np.asarray(picture, dtype=np.float64)
        full = 65535 if values.max() > 255 else 255
        return Image.fromarray((values / full * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


class Placement(NamedTuple):
    """How `augment` moves a picture: mirrored or not, then shifted in half sides, then scaled."""

    scale: float
    right: float
    down: float
    mirrored: bool = False


def placement(rng: np.random.Generator, photograph: bool = False) -> Placement:
    """A random one; photographs are moved further, and half of them are mirrored."""
    if photograph:
        return Placement(rng.uniform(0.85, 1.15), *rng.uniform(-0.2, 0.2, size=2), bool(rng.random() < 0.5))
    return Placement(rng.uniform(0.92, 1.08), *rng.uniform(-0.06, 0.06, size=2))


def moved(box: tuple[float, ...], placed: Placement) -> tuple[float, ...]:
    """A box (left, top, right, bottom, in shares of the sides) after the picture was moved."""
    left, top, right, bottom = box
    if placed.mirrored:
        left, right = 1 - right, 1 - left
    shift = (placed.right, placed.down)
    return tuple(min(max(((2 * v - 1 + shift[i % 2]) * placed.scale + 1) / 2, 0.0), 1.0)
                 for i, v in enumerate((left, top, right, bottom)))


def augment(pixels: torch.Tensor, rng: np.random.Generator, photograph: bool = False) -> torch.Tensor:
    """A varied take of a picture (3, H, W): moved and scaled a little, brightness, contrast and noise.

    No change of hue (colors have names), and no mirroring (left and right and letters have meaning) but of
    photographs. Of those a square is hidden besides (DeVries and Taylor 2017).
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
