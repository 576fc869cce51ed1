"""The backgrounds of pictures: places with some clutter, and the paper under digits."""

import numpy as np
from draw import SIDE, ZOOM, jitter, mix
from PIL import Image, ImageDraw

BIG = SIDE * ZOOM
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def gradient(top, bottom, start=0, stop=BIG):
    """A vertical blend between two colors over the rows from `start` to `stop`."""
    t = np.clip((np.arange(BIG) - start) / max(1, stop - start), 0, 1)[:, None, None]
    rows = (1 - t) * np.array(top, float) + t * np.array(bottom, float)
    return Image.fromarray(np.broadcast_to(rows, (BIG, BIG, 3)).round().astype(np.uint8).copy())


def spots(rng, count):
    """`count` random points of the large picture."""
    return [tuple(int(v) for v in rng.integers(0, BIG, 2)) for _ in range(count)]


def grass(rng):
    base = jitter(rng, (142, 200, 104), 14)
    image = gradient(mix(base, WHITE, 0.15), mix(base, BLACK, 0.08))
    draw = ImageDraw.Draw(image)
    for x, y in spots(rng, rng.integers(14, 34)):
        h, lean = int(rng.integers(10, 24)), int(rng.integers(-6, 7))
        for d in (-5, 0, 5):
            draw.line((x, y, x + d + lean, y - h), mix(base, BLACK, 0.22), 3)
    for x, y in spots(rng, rng.integers(0, 6)):  # little flowers
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), (250, 245, 225))
    return image


def sky(rng):
    base = jitter(rng, (150, 200, 242), 14)
    image = gradient(base, mix(base, WHITE, rng.uniform(0.2, 0.55)))
    draw = ImageDraw.Draw(image)
    for x, y in spots(rng, rng.integers(2, 5)):  # clouds
        w = int(rng.integers(22, 40))
        for d, r in ((-w, 0.5), (0, 0.75), (w * 0.9, 0.55)):
            r *= w
            draw.ellipse((x + d - r, y - r * 0.7, x + d + r, y + r * 0.6), mix(base, WHITE, 0.75))
    return image


def water(rng):
    base = jitter(rng, (70, 150, 190), 14)
    image = gradient(mix(base, WHITE, 0.25), mix(base, BLACK, 0.1))
    draw = ImageDraw.Draw(image)
    for x, y in spots(rng, rng.integers(14, 28)):  # ripples
        w = int(rng.integers(12, 24))
        for d in (-w, w):
            draw.arc((x + d - w, y - 7, x + d + w, y + 7), 10, 170, mix(base, WHITE, 0.5), 4)
    return image


def sand(rng):
    base = jitter(rng, (232, 208, 152), 10)
    image = gradient(mix(base, WHITE, 0.15), mix(base, BLACK, 0.06))
    draw = ImageDraw.Draw(image)
    for x, y in spots(rng, rng.integers(4, 9)):  # dunes
        w = int(rng.integers(40, 90))
        draw.arc((x - w, y - 16, x + w, y + 16), 190, 350, mix(base, BLACK, 0.14), 4)
    for x, y in spots(rng, rng.integers(20, 50)):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), mix(base, BLACK, 0.3))
    return image


def snow(rng):
    base = jitter(rng, (226, 234, 244), 6)
    image = gradient(mix(base, (170, 190, 220), 0.5), base, 0, BIG // 2)
    draw = ImageDraw.Draw(image)
    for x, y in spots(rng, rng.integers(2, 5)):  # drifts
        w = int(rng.integers(70, 130))
        draw.arc((x - w, y - 20, x + w, y + 20), 190, 350, mix(base, (140, 165, 205), 0.5), 5)
    for x, y in spots(rng, rng.integers(12, 26)):  # flakes
        for dx, dy in ((6, 0), (3, 5), (3, -5)):
            draw.line((x - dx, y - dy, x + dx, y + dy), WHITE, 3)
    return image


def room(rng):
    tones = ((214, 190, 196), (222, 206, 180), (196, 200, 208), (206, 196, 220))
    wall = jitter(rng, tones[rng.integers(4)], 8)
    floor = jitter(rng, (172, 128, 92), 12)
    image, edge = Image.new("RGB", (BIG, BIG), wall), int(rng.uniform(0.55, 0.78) * BIG)
    draw = ImageDraw.Draw(image)
    step = int(rng.integers(26, 48))
    if rng.random() < 0.5:  # a papered wall
        for x in range(int(rng.integers(step)), BIG, step):
            draw.line((x, 0, x, edge), mix(wall, WHITE, 0.3), 5)
    draw.rectangle((0, edge, BIG, BIG), floor)
    draw.rectangle((0, edge - 8, BIG, edge), mix(wall, WHITE, 0.7))
    for x in range(-BIG, 2 * BIG, step + 14):  # floor boards in perspective
        draw.line((BIG / 2 + (x - BIG / 2) * 0.6, edge, x, BIG), mix(floor, BLACK, 0.22), 3)
    return image


def paper(rng):
    """A pale or grey background for a digit: plain, shaded, striped or dotted."""
    base = jitter(rng, mix((200, 205, 210), (225, 215, 200), rng.random()), 20)
    style = rng.integers(4)
    image = gradient(base, mix(base, WHITE if rng.random() < 0.5 else BLACK, 0.3 if style == 1 else 0.05))
    draw, step, tone = ImageDraw.Draw(image), int(rng.integers(22, 44)), mix(base, BLACK, 0.1)
    if style == 2:
        lean = int(rng.integers(-60, 61))
        for x in range(-BIG, 2 * BIG, step):
            draw.line((x, 0, x + lean, BIG), tone, 6)
    elif style == 3:
        for x, y in spots(rng, 40):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), tone)
    return image


GROUNDS = {f.__name__: f for f in (grass, sky, water, sand, snow, room, paper)}


def finish(rng, image, strength=1.6):
    """The large picture at its final size, with random brightness, contrast and noise, as from a camera."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), float)
    small = (small - 128) * rng.uniform(0.9, 1.08) + 128 + rng.uniform(-14, 10)
    small += rng.normal(0, rng.uniform(0, strength), small.shape[:2])[:, :, None]
    return Image.fromarray(np.clip(small, 0, 255).round().astype(np.uint8))
