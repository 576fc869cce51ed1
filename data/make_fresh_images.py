"""Draws the many pictures of stage C into `data/fresh/pictures/`: `python data/make_fresh_images.py`.

They are like those of `make_images.py`, but not shipped. Drawing a figure takes longer than the rest of a
picture, so each figure here is one of a few poses, drawn once and then mirrored and resized. The figures of
the held-out pictures are drawn anew.
"""

import argparse
import json
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from draw import COLORS, FIGURES, ZOOM, figure
from make_images import DESCRIBE, QUALITY, SCENES, chat, describe, render
from PIL import Image
from tqdm import tqdm

SHARES = {"objects": 60, "counting": 20, "digit": 8, "sign": 12}  # percent of each kind of scene
STREAMS = {"train": 4, "val": 5, "poses": 6}  # numbers of random streams that make_images.py doesn't use
BIG, SMALL = 60, 31  # typical extents of figures, in which their poses are drawn
TRAIN_PER_VAL = 160  # training pictures for each held-out one
POSES = 24  # of each kind, color and size


@cache
def pose(seed, kind, color, extent, number):
    """A figure on a transparent ground, always the same."""
    key = (seed, STREAMS["poses"], list(FIGURES).index(kind), list(COLORS).index(color), extent, number)
    return figure(np.random.default_rng(key), kind, color, extent)


def posed(seed, rng, kind, color, extent):
    """A figure in a random pose, for `render`."""
    layer = pose(seed, kind, color, BIG if extent > 45 else SMALL, int(rng.integers(POSES)))
    if rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = extent * ZOOM / max(layer.size)
    return layer.resize([max(1, round(side * scale)) for side in layer.size], Image.Resampling.BILINEAR)


def sample(name, seed, out, index):
    """Draw and write one picture. Returns its line of the manifest."""
    rng = np.random.default_rng((seed, STREAMS[name], index))
    held = name == "val"
    sort = list(SHARES)[rng.choice(len(SHARES), p=np.array(list(SHARES.values())) / 100)]
    scene = SCENES[sort](rng, held)
    image, objects = render(rng, scene, figure if held else partial(posed, seed))
    if sort == "counting":  # all are small, which `render` doesn't say because no question asks for it
        objects = [{**item, "words": ["small", *item["words"]]} for item in objects]
    if scene.place != "paper":
        objects.append({"words": [scene.place], "box": [0, 0, 1, 1]})
    path = f"img/{name}_{index:06}.webp"
    image.save(Path(out, path), quality=QUALITY, method=0)
    return {**chat(rng, path, [(DESCRIBE, describe(scene))]), "objects": objects}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/fresh/pictures")
    parser.add_argument("--pictures", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--procs", type=int, default=2)
    args = parser.parse_args()
    Path(args.out, "img").mkdir(parents=True, exist_ok=True)
    for name, total in (("val", args.pictures // TRAIN_PER_VAL), ("train", args.pictures)):
        with Pool(args.procs) as pool, open(Path(args.out, f"{name}.jsonl"), "w", encoding="utf-8") as file:
            work = pool.imap(partial(sample, name, args.seed, args.out), range(total), chunksize=100)
            file.writelines(json.dumps(line) + "\n" for line in tqdm(work, name, total, mininterval=5))


if __name__ == "__main__":
    main()
