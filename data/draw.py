"""Draws the animals, shapes and things of `world.py` as cartoons, and the text of digits and signs.

A figure is drawn facing right on a large layer, in coordinates from -1 to 1 with y downwards. Then it is
tilted, mirrored, cropped and shrunk to its size in the picture, which also smooths its edges.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from world import COLORS

SIDE = 128  # of a finished picture, in pixels
ZOOM = 2  # pictures are drawn this much larger and shrunk at the end
LAYER = 240  # side of the layer that one figure is drawn on
EYE, PALE, DARK = (20, 20, 22), (250, 250, 250), (60, 58, 60)


def mix(a, b, t):
    """The color a fraction `t` of the way from `a` to `b`."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def jitter(rng, color, spread=10):
    """`color`, changed a little at random."""
    return tuple(int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in color)


def curve(points, steps=10):
    """A closed smooth outline (Catmull-Rom) through `points`."""
    p, n, out = np.array(points, float), len(points), []
    for i in range(n):
        a, b, c, d = p[i - 1], p[i], p[(i + 1) % n], p[(i + 2) % n]
        for t in np.arange(steps) / steps:
            out.append(tuple(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
                                    + (3 * b - a - 3 * c + d) * t**3)))
    return out


class Pen:
    """Draws the parts of one figure, each filled and outlined, in coordinates from -1 to 1."""

    def __init__(self, color, extent):
        self.image = Image.new("RGBA", (LAYER, LAYER))
        self.draw = ImageDraw.Draw(self.image)
        self.unit = LAYER * 0.36
        self.width = max(3, round(1.5 * 2 * self.unit / extent))  # about 1.5 pixels after shrinking
        self.color = color
        dark = sum(color) < 150
        # A dark figure gets lighter lines, so that they are visible.
        self.line = (140, 140, 146) if dark else mix(color, (15, 12, 20), 0.75)
        self.light = mix(color, (255, 255, 255), 0.22 if dark else 0.4)
        self.shade = mix(color, (255, 255, 255), 0.15) if dark else mix(color, (0, 0, 0), 0.25)

    def px(self, points):
        return [(LAYER / 2 + x * self.unit, LAYER / 2 + y * self.unit) for x, y in points]

    def poly(self, points, fill=None, smooth=False):
        pts = self.px(curve(points) if smooth else points)
        self.draw.polygon(pts, fill=fill or self.color)
        self.draw.line([*pts, pts[0], pts[1]], fill=self.line, width=self.width, joint="curve")

    def oval(self, x, y, rx, ry, fill=None, tilt=0.0):
        """An ellipse, turned clockwise by `tilt` degrees."""
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        turns = np.arange(40) * math.tau / 40
        along, across = rx * np.cos(turns), ry * np.sin(turns)
        self.poly(list(zip(x + along * c - across * s, y + along * s + across * c, strict=True)), fill)

    def dot(self, x, y, r, fill=EYE):
        (px, py), r = self.px([(x, y)])[0], r * self.unit
        self.draw.ellipse((px - r, py - r, px + r, py + r), fill=fill)

    def eye(self, x, y, r=0.09):
        self.dot(x, y, r * 1.5, PALE)
        self.dot(x + r * 0.3, y, r)

    def stroke(self, points, width, fill=None):
        """A thick line with round ends."""
        pts, w = self.px(points), max(2, round(width * self.unit))
        self.draw.line(pts, fill=fill or self.line, width=w, joint="curve")
        for x, y in (pts[0], pts[-1]):
            self.draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=fill or self.line)

    def tube(self, points, width, fill=None):
        """A thick line with an outline, for tails and legs."""
        self.stroke(points, width + 2 * self.width / self.unit * 0.8)
        self.stroke(points, width, fill or self.color)


def cat(p):  # sits, seen from the front: pointed ears, whiskers, a raised tail
    p.tube([(0.35, 0.8), (0.72, 0.72), (0.88, 0.4), (0.8, 0.08), (0.92, -0.14)], 0.15)
    p.poly([(-0.2, -0.1), (0.2, -0.1), (0.52, 0.6), (0.42, 0.97), (-0.42, 0.97), (-0.52, 0.6)], smooth=True)
    p.stroke([(0, 0.62), (0, 0.93)], p.width / p.unit)
    for s in (-1, 1):
        p.poly([(s * 0.66, -1.02), (s * 0.62, -0.35), (s * 0.12, -0.66)])
        p.poly([(s * 0.56, -0.82), (s * 0.53, -0.55), (s * 0.33, -0.65)], p.light)
    p.oval(0, -0.38, 0.62, 0.47)
    for s in (-1, 1):
        p.eye(s * 0.25, -0.44, 0.1)
        for y in (-0.3, -0.12):
            p.stroke([(s * 0.3, -0.2), (s * 0.86, y)], 0.035)
    p.poly([(-0.09, -0.25), (0.09, -0.25), (0, -0.15)], (235, 130, 140))


def dog(p):  # stands, seen from the side: four legs, a snout, a hanging ear, a tail in the air
    p.tube([(-0.68, -0.08), (-0.86, -0.3), (-0.95, -0.6)], 0.13)
    for x, tone in ((-0.36, p.shade), (0.22, p.shade), (-0.58, p.color), (0.42, p.color)):
        p.tube([(x, 0.25), (x, 0.78)], 0.17, tone)
    p.poly([(-0.74, -0.14), (0.1, -0.1), (0.36, -0.5), (0.64, -0.3), (0.58, 0.36), (0, 0.34), (-0.7, 0.4)],
           smooth=True)
    p.poly([(0.3, -0.78), (0.6, -0.82), (0.72, -0.55), (1.02, -0.45), (1, -0.2), (0.6, -0.14), (0.28, -0.3)],
           smooth=True)
    p.dot(0.99, -0.43, 0.1, DARK)
    p.poly([(0.3, -0.8), (0.42, -0.6), (0.36, -0.1), (0.12, -0.06), (0.1, -0.5)], p.shade, smooth=True)
    p.eye(0.6, -0.57, 0.07)


def fish(p):
    p.poly([(-0.45, 0), (-1, -0.5), (-0.84, 0), (-1, 0.5)], p.shade)
    p.poly([(-0.15, -0.4), (0.1, -0.78), (0.42, -0.36)], p.shade)
    p.poly([(-0.1, 0.4), (0.0, 0.72), (0.28, 0.38)], p.shade)
    p.poly([(-0.62, 0), (-0.2, -0.42), (0.4, -0.46), (0.95, 0), (0.4, 0.46), (-0.2, 0.42)], smooth=True)
    p.stroke([(0.36, -0.38), (0.24, 0), (0.36, 0.38)], 0.05)
    p.poly([(0.08, -0.02), (-0.25, -0.16), (-0.22, 0.2)], p.light)
    p.eye(0.62, -0.13, 0.09)


def bird(p):  # stands on thin legs: beak, folded wing, tail feathers
    for x in (-0.08, 0.18):
        p.stroke([(x, 0.45), (x, 0.92), (x + 0.2, 0.95)], 0.07, (120, 85, 40))
    p.poly([(-0.4, 0.05), (-1.0, -0.22), (-0.98, 0.1), (-0.85, 0.3), (-0.4, 0.4)], p.shade)
    p.oval(-0.02, 0.15, 0.58, 0.45, tilt=-18)
    p.poly([(0.7, -0.64), (1.05, -0.42), (0.68, -0.3)], (240, 180, 60))
    p.oval(0.46, -0.46, 0.36, 0.36)
    p.poly([(0.24, 0.02), (-0.1, -0.16), (-0.72, -0.02), (-0.42, 0.34), (0.05, 0.38)], p.light, smooth=True)
    p.eye(0.56, -0.52, 0.08)


def rabbit(p):  # sits, seen from the side: two long ears, a round tail
    p.oval(-0.68, 0.55, 0.2, 0.2, p.light)
    p.oval(0.1, -0.62, 0.13, 0.42, p.shade, tilt=-14)
    p.oval(0.42, -0.6, 0.14, 0.44, tilt=8)
    p.oval(0.41, -0.6, 0.05, 0.28, (240, 170, 185), tilt=8)
    p.oval(-0.12, 0.42, 0.55, 0.5)
    p.oval(0.38, 0.84, 0.26, 0.13)
    p.oval(-0.2, 0.84, 0.34, 0.14)
    p.oval(0.38, -0.08, 0.38, 0.33)
    p.eye(0.5, -0.14, 0.08)
    p.dot(0.75, -0.05, 0.07, (235, 130, 140))


def turtle(p):  # a dome of plates between a head and short legs
    p.poly([(-0.7, 0.35), (-1.0, 0.5), (-0.68, 0.52)], p.light)
    for x in (-0.45, 0.4):
        p.tube([(x, 0.4), (x + 0.04, 0.62)], 0.22, p.light)
    p.tube([(0.55, 0.3), (0.78, 0.1)], 0.2, p.light)
    p.oval(0.83, 0.02, 0.23, 0.2, p.light)
    dome = [(0.72 * math.cos(a), 0.4 - 0.95 * math.sin(a)) for a in np.linspace(0, math.pi, 24)]
    p.poly(dome)
    p.poly([(-0.2, -0.28), (0.2, -0.28), (0.32, 0.02), (0, 0.2), (-0.32, 0.02)], p.shade)
    for a, b in (((-0.2, -0.28), (-0.3, -0.45)), ((0.2, -0.28), (0.3, -0.45)), ((0.32, 0.02), (0.66, 0.05)),
                 ((-0.32, 0.02), (-0.66, 0.05)), ((0, 0.2), (0, 0.4))):
        p.stroke([a, b], p.width / p.unit)
    p.poly([(-0.8, 0.34), (0.8, 0.34), (0.74, 0.48), (-0.74, 0.48)], p.shade)
    p.eye(0.9, -0.03, 0.055)


def snake(p):  # waves, with a forked tongue
    xs = np.linspace(-0.95, 0.6, 40)
    wave = [(x, 0.38 * math.sin(x * 5.4 + 0.9) + 0.05) for x in xs]
    p.stroke([(0.85, -0.2), (1.12, -0.24)], 0.06, (220, 40, 60))
    p.tube([*wave, (0.72, -0.2)], 0.25)
    for x, y in wave[3:-3:5]:
        p.dot(x, y, 0.07, p.light)
    p.oval(0.76, -0.24, 0.25, 0.18)
    p.eye(0.82, -0.3, 0.06)


def butterfly(p):  # seen from above: four wings around a thin body
    for s in (-1, 1):
        hind = (0.05, 0.1), (0.5, 0.08), (0.75, 0.4), (0.55, 0.82), (0.2, 0.62)
        fore = (0.05, 0), (0.25, -0.6), (0.75, -0.88), (1.0, -0.5), (0.7, 0.12)
        p.poly([(s * x, y) for x, y in hind], p.shade, smooth=True)
        p.poly([(s * x, y) for x, y in fore], smooth=True)
        p.oval(s * 0.65, -0.42, 0.16, 0.16, p.light)
        p.oval(s * 0.45, 0.44, 0.11, 0.11, p.light)
        p.stroke([(0, -0.45), (s * 0.2, -0.95)], 0.05, DARK)
    p.oval(0, 0.05, 0.09, 0.55, DARK)


def circle(p):
    p.oval(0, 0, 0.95, 0.95)


def square(p):
    p.poly([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])


def triangle(p):
    p.poly([(0, -0.9), (0.98, 0.8), (-0.98, 0.8)])


def star(p):
    p.poly([((1.0 if i % 2 == 0 else 0.42) * math.sin(i * math.pi / 5),
             -(1.0 if i % 2 == 0 else 0.42) * math.cos(i * math.pi / 5)) for i in range(10)])


def heart(p):
    p.poly([(16 * math.sin(t) ** 3 / 17, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)
                                          - math.cos(4 * t)) / 17) for t in np.arange(48) * math.tau / 48])


def tree(p):
    p.poly([(-0.13, 0.3), (0.13, 0.3), (0.2, 0.98), (-0.2, 0.98)], mix(p.color, (70, 55, 45), 0.6))
    p.poly([(0, -1.0), (0.4, -0.85), (0.55, -0.6), (0.78, -0.3), (0.62, 0.15), (0.3, 0.35), (0, 0.28),
            (-0.3, 0.35), (-0.62, 0.15), (-0.78, -0.3), (-0.55, -0.6), (-0.4, -0.85)], smooth=True)
    for x, y in ((-0.3, -0.4), (0.25, -0.2), (0.05, -0.7)):
        p.stroke([(x - 0.12, y), (x, y + 0.08), (x + 0.12, y)], 0.05)


def house(p):
    p.poly([(-0.72, -0.2), (0.72, -0.2), (0.72, 0.9), (-0.72, 0.9)])
    p.poly([(0, -0.98), (0.98, -0.15), (-0.98, -0.15)], p.shade)
    p.poly([(-0.45, 0.28), (-0.08, 0.28), (-0.08, 0.9), (-0.45, 0.9)], p.light)
    p.poly([(0.14, 0.12), (0.52, 0.12), (0.52, 0.48), (0.14, 0.48)], (215, 235, 250))


def car(p):
    p.poly([(-0.6, 0.0), (-0.42, -0.5), (0.32, -0.5), (0.62, 0.0)])
    p.poly([(-0.46, -0.02), (-0.34, -0.38), (-0.06, -0.38), (-0.06, -0.02)], (215, 235, 250))
    p.poly([(0.04, -0.02), (0.04, -0.38), (0.26, -0.38), (0.46, -0.02)], (215, 235, 250))
    p.poly([(-1.0, 0.0), (0.75, 0.0), (1.0, 0.12), (1.0, 0.42), (-1.0, 0.42)])
    for x in (-0.55, 0.55):
        p.dot(x, 0.44, 0.27, DARK)
        p.dot(x, 0.44, 0.11, (190, 190, 195))


def boat(p):
    p.stroke([(0, 0.4), (0, -0.98)], 0.09)
    p.poly([(0.08, -0.92), (0.75, 0.2), (0.08, 0.2)], p.light)
    p.poly([(-0.08, -0.7), (-0.62, 0.2), (-0.08, 0.2)], p.light)
    p.poly([(-1.0, 0.36), (1.0, 0.36), (0.62, 0.85), (-0.62, 0.85)])


FIGURES = {f.__name__: f for f in (cat, dog, fish, bird, rabbit, turtle, snake, butterfly, circle, square,
                                   triangle, star, heart, tree, house, car, boat)}


def fit(layer, extent):
    """`layer` without its empty margin, its longer side `extent` pixels long in the finished picture."""
    layer = layer.crop(layer.getbbox())
    scale = extent * ZOOM / max(layer.size)
    size = [max(1, round(s * scale)) for s in layer.size]
    return layer.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)


def figure(rng, kind, color, extent):
    """One figure on a transparent ground, mirrored and tilted by up to 20 degrees at random."""
    pen = Pen(jitter(rng, COLORS[color]), extent)
    FIGURES[kind](pen)
    layer = pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else pen.image
    return fit(layer.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC), extent)


def lettering(text, fill, line, tilt, extent):
    """Outlined text in Pillow's own font, tilted by `tilt` degrees, its longer side `extent` pixels long."""
    layer = Image.new("RGBA", (LAYER * 2, LAYER))
    ImageDraw.Draw(layer).text((LAYER, LAYER / 2), text, fill, ImageFont.load_default(110), "mm",
                               stroke_width=4, stroke_fill=line)
    return fit(layer.rotate(tilt, Image.Resampling.BICUBIC), extent)
