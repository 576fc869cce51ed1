"""An image of any mode is read as RGB in [-1, 1] or refused with a reason."""

import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from published import DECODER_ERRORS, assert_refused

from omni.base.config import VisionArch
from omni.base.errors import MediaError
from omni.data import image
from omni.data.media_reader import MediaReader

SIZE = 32
ARCH = VisionArch(image_size=SIZE)


def center_color(pixels: torch.Tensor) -> list[int]:
    """RGB of the pixel in the center, 0 to 255."""
    return [round(float(x)) for x in (pixels[:, SIZE // 2, SIZE // 2] + 1) * 127.5]


def load(picture: Image.Image, path, **options) -> torch.Tensor:
    picture.save(path, **options)
    pixels = image.load(path, SIZE)
    assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == torch.float32
    assert -1 <= pixels.min() and pixels.max() <= 1
    return pixels


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_common_formats_are_read(tmp_path, ending):
    got = center_color(load(Image.new("RGB", (64, 64), (200, 100, 0)), tmp_path / f"a.{ending}"))
    assert all(abs(a - b) <= 6 for a, b in zip(got, (200, 100, 0), strict=True))


def test_an_image_of_the_right_size_is_read_unchanged(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels = load(Image.fromarray(values), tmp_path / "a.png")
    assert np.array_equal(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), values)


@pytest.mark.parametrize("mode, color, wanted", [
    ("L", 100, (100, 100, 100)), ("1", 1, (255, 255, 255)), ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
    ("RGBA", (0, 0, 0, 255), (0, 0, 0)), ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
    ("LA", (0, 0), (255, 255, 255))])
def test_modes_of_png(tmp_path, mode, color, wanted):
    got = center_color(load(Image.new(mode, (SIZE, SIZE), color), tmp_path / "a.png"))
    assert all(abs(a - b) <= 1 for a, b in zip(got, wanted, strict=True))


def test_palette_and_transparency(tmp_path):
    picture = Image.new("P", (SIZE, SIZE), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    assert center_color(load(picture, tmp_path / "a.png")) == [10, 200, 30]
    assert center_color(load(picture, tmp_path / "b.png", transparency=1)) == [255, 255, 255]
    assert center_color(load(picture, tmp_path / "c.png", transparency=0)) == [10, 200, 30]


def test_cmyk(tmp_path):
    got = center_color(load(Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), tmp_path / "a.jpg"))
    assert got[0] > 200 and max(got[1:]) < 60


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE)
    pixels = load(Image.fromarray(ramp.astype(np.uint16)), tmp_path / "a.png")
    assert np.abs((pixels[0].numpy() + 1) * 127.5 - ramp / 257).max() <= 1.01


def test_16_bit_grey_of_a_single_shade_keeps_it(tmp_path):
    picture = Image.fromarray(np.full((SIZE, SIZE), 32768, np.uint16))
    assert abs(center_color(load(picture, tmp_path / "a.png"))[0] - 128) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    # Shown, all eight have the red rectangle at the top left.
    shown = Image.new("RGB", (SIZE, SIZE), "white")
    shown.paste((255, 0, 0), (0, 0, 8, 16))
    T = Image.Transpose
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
            7: T.TRANSVERSE, 8: T.ROTATE_270}
    stored = shown.transpose(undo[orientation]) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert torch.equal(load(stored, tmp_path / "a.png", exif=exif), load(shown, tmp_path / "b.png"))


def test_a_wide_image_is_fitted_whole_and_padded_with_white(tmp_path):
    picture = Image.new("RGB", (128, 64), "black")
    pixels = load(picture, tmp_path / "a.png")
    assert (pixels[:, 0] == 1).all() and (pixels[:, -1] == 1).all() and (pixels[:, SIZE // 2] == -1).all()


def huge_png(side: int) -> bytes:
    """A header that declares side x side pixels, without pixel data."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("content, reason", [
    (b"", "not an image"), (b"<html>404</html>", "not an image"), (huge_png(8000), "limit"),
    (huge_png(60_000), "large"), (huge_png(100), ""), (b"\x89PNG\r\n\x1a\n", ""), (b"GIF89a", ""),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image")])
def test_bad_images_are_refused_with_a_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(MediaError) as caught:
        image.load(tmp_path / "a.jpg", SIZE)
    message = str(caught.value)
    assert message and reason in message and "\n" not in message and str(tmp_path) not in message


@pytest.mark.parametrize("error", DECODER_ERRORS, ids=repr)
@pytest.mark.parametrize("place", ["PIL.Image.open", "PIL.PngImagePlugin.PngImageFile.load", "numpy.array",
                                   "PIL.ImageOps.exif_transpose", "PIL.ImageOps.pad", "torch.from_numpy",
                                   "omni.data.media.source"])
def test_whatever_a_decoder_raises_becomes_a_media_error(tmp_path, monkeypatch, place, error):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (SIZE, 8)).save("PATH", "PNG")

    def fail(*_args, **_options):
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        assert_refused(lambda: image.load("PATH", SIZE))


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("pipe.png", "regular"), (".", "regular"), ("none.png", "no such")):
        with pytest.raises(MediaError, match=reason):
            image.load(tmp_path / name, SIZE)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image_is_read_or_refused(tmp_path, ending):
    path, rng = tmp_path / f"a.{ending}", random.Random(0)
    values = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole[:rng.randrange(1, len(whole))] if rng.random() < 0.4 else whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert image.load(path, SIZE).isfinite().all()
        except MediaError:
            refused += 1
    assert refused > 0


def test_a_take_depends_only_on_seed_take_and_file_name(tmp_path):
    Image.effect_noise((SIZE, SIZE), 90).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    path, reader = str(tmp_path / "a.png"), MediaReader(ARCH, None, seed=3)
    first = reader.pixels(path, 1)
    assert first.abs().max() <= 1 and first.shape == (3, SIZE, SIZE)
    reader.pixels(path, 2)
    assert torch.equal(first, reader.pixels(path, 1))
    assert torch.equal(first, MediaReader(ARCH, None, 3).pixels(path, 1))
    others = [reader.pixels(path, 2), reader.pixels(path, 0), MediaReader(ARCH, None, seed=4).pixels(path, 1),
              reader.pixels(str(tmp_path / "b.png"), 1)]
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.real_data
def test_real_photographs_are_read(real):
    paths = sorted((real / "cifar10" / "test").rglob("*.jpg"))[::100]
    assert paths and all(image.load(path, SIZE).isfinite().all() for path in paths)
