"""Draws the shipped pictures and writes the questions about them: `python data/make_images.py`.

First a random scene is made. The picture, the answers and the description are made from it. Each sample has
its own random stream, so the same seed gives the same files for any `--procs`.
"""

import argparse
import json
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from draw import COLORS, DARK, ZOOM, figure, jitter, lettering, mix
from grounds import BIG, GROUNDS, finish
from PIL import Image, ImageDraw
from questions import DESCRIBE, HELD_COLOR, HELD_DIGIT, HELD_SIGN, WEIGHTS, Asker, Item, Scene, describe
from tqdm import tqdm
from world import ANIMALS, KINDS, NUMBER_WORDS, PLACES, SIGNS

QUALITY = 75
SETS = {  # name -> folder, number of the random stream, pictures, percent of each kind of scene
    "train": ("image_text", 0, 5000, {"objects": 65, "counting": 12, "digit": 11, "sign": 12}),
    "val": ("image_text", 1, 500, {"objects": 65, "counting": 12, "digit": 11, "sign": 12}),
    "counting": ("image_text", 7, 2000, {"counting": 100}),  # more for "train": it takes the most examples
    "spoken_train": ("image_audio_text", 2, 1000, {"objects": 75, "counting": 25}),
    "spoken_val": ("image_audio_text", 3, 200, {"objects": 75, "counting": 25}),
}
VAL_DESCRIPTIONS = 5  # one in this many held-out pictures is to be described; the others get a question


def pick(rng, options):
    options = list(options)
    return options[rng.integers(len(options))]


def free_color(rng, held_color, held):
    """The held-out color if `held`, else any other color."""
    return held_color if held else pick(rng, [c for c in COLORS if c != held_color])


def spread(rng, extents, gap):
    """Centers of squares with these sides, without overlap, at least `gap` apart in x; None if none fit."""
    for _ in range(60):
        spots = []
        for e in extents:
            for _ in range(40):
                x, y = rng.uniform(e / 2 + 2, 126 - e / 2, 2)
                apart = ((abs(x - a), abs(y - b), (e + f) / 2 + 1) for a, b, f in spots)
                if all(dx >= gap and max(dx, dy) > least for dx, dy, least in apart):
                    spots.append((x, y, e))
                    break
            else:
                break
        if len(spots) == len(extents):
            return spots
    return None


def pick_kind(rng):
    """A random kind. Animals are drawn a little more often, because most questions are about them."""
    return pick(rng, ANIMALS if rng.random() < 0.55 else KINDS)


def objects(rng, held):
    """1 to 4 objects, big or small. In a held-out scene at least one has its held-out color."""
    n = int(rng.choice(4, p=(0.26, 0.34, 0.24, 0.16))) + 1
    kinds = [pick_kind(rng) for _ in range(n)]
    if rng.random() < (1, 0.9, 0.6, 0.6)[n - 1]:  # mostly different kinds, which allow more questions
        while len(set(kinds)) < n:
            kinds = [pick_kind(rng) for _ in range(n)]
    rare = [held and (i == 0 or rng.random() < 0.4) for i in range(n)]
    colors = [free_color(rng, HELD_COLOR[k], r) for k, r in zip(kinds, rare, strict=True)]
    while True:
        sizes = [pick(rng, ("big", "small")) for _ in range(n)]
        if sizes.count("big") <= (1, 2, 2, 2)[n - 1]:
            extents = [rng.uniform(*((54, 66) if s == "big" else (28, 36))) for s in sizes]
            spots = spread(rng, extents, 12)
            if spots:
                break
    items = [Item(k, c, s, *at) for k, c, s, at in zip(kinds, colors, sizes, spots, strict=True)]
    return Scene("objects", pick(rng, PLACES), [items[i] for i in rng.permutation(n)])


def counting(rng, held):
    """1 to 6 objects of one kind, in one color or several, sometimes with up to 4 of another kind."""
    n, kind = int(rng.choice(6, p=(0.08, 0.1, 0.14, 0.2, 0.24, 0.24))) + 1, pick_kind(rng)
    groups = [kind] * n
    if rng.random() < 0.6:
        groups += [pick(rng, [k for k in KINDS if k != kind])] * int(rng.integers(1, min(4, 8 - n) + 1))
    same, colors = rng.random() < 0.5, []
    for i, k in enumerate(groups):
        if same and i and groups[i - 1] == k:
            colors.append(colors[-1])
        else:
            colors.append(free_color(rng, HELD_COLOR[k], held and (i == 0 or rng.random() < 0.4)))
    spots = None
    while spots is None:
        spots = spread(rng, [rng.uniform(25, 36 if len(groups) < 6 else 30) for _ in groups], 0)
    items = [Item(k, c, "small", *at) for k, c, at in zip(groups, colors, spots, strict=True)]
    return Scene("counting", pick(rng, PLACES), [items[i] for i in rng.permutation(len(items))])


def digit(rng, held):
    value = int(rng.integers(10))
    return Scene("digit", "paper", word=NUMBER_WORDS[value], color=free_color(rng, HELD_DIGIT[value], held))


def sign(rng, held):
    word = pick(rng, SIGNS)
    return Scene("sign", pick(rng, PLACES), word=word, color=free_color(rng, HELD_SIGN[word], held))


SCENES = {f.__name__: f for f in (objects, counting, digit, sign)}


def paste(image, layer, x, y):
    """Paste `layer` with its center at (x, y), in pixels of the finished picture, but inside its edges.

    Returns its box as fractions of the picture: left, top, right, bottom.
    """
    size = np.array(layer.size)
    corner = np.clip(np.array((x, y)) * ZOOM - size / 2, 2, BIG - size - 2).round().astype(int)
    image.paste(layer, tuple(corner.tolist()), layer)
    return [round(float(v), 3) for v in np.clip((*corner / BIG, *(corner + size) / BIG), 0, 1)]


def contrast(color):
    """Black or white, whichever is easier to read on `color`."""
    return (250, 250, 250) if np.dot(color, (0.3, 0.59, 0.11)) < 150 else (20, 20, 24)


def board(rng, word, color):
    """A sign on its post: a colored board with a rim and a word."""
    fill = jitter(rng, COLORS[color])
    word = word.upper() if rng.random() < 0.5 else word
    text = lettering(word, contrast(fill), fill, 0, rng.uniform(70, 84))
    w, h = text.width + 30, max(text.height + 34, 84)
    layer = Image.new("RGBA", (w + 8, h + 96))
    draw = ImageDraw.Draw(layer)
    draw.rectangle((w // 2 - 6, h, w // 2 + 8, h + 92), (130, 110, 95), DARK, 3)
    draw.rounded_rectangle((2, 2, w + 4, h + 4), pick(rng, (4, 16, 30)), fill, mix(fill, DARK, 0.8), 4)
    draw.rounded_rectangle((9, 9, w - 3, h - 3), 12, None, contrast(fill), 2)
    layer.paste(text, ((w + 6 - text.width) // 2, (h + 6 - text.height) // 2), text)
    return layer.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, expand=True)


def render(rng, scene, figure=figure):
    """The picture of a scene, and its objects as [{"words": [...], "box": [...]}, ...]."""
    image, objects = GROUNDS[scene.place](rng), []
    for item in scene.items:
        box = paste(image, figure(rng, item.kind, item.color, item.extent), item.x, item.y)
        size = [item.size] if scene.sort == "objects" else []  # only there is an item clearly big or small
        objects.append({"words": [*size, item.color, item.kind], "box": box})
    if scene.sort == "digit":
        fill, extent = jitter(rng, COLORS[scene.color]), rng.uniform(48, 96)
        rim = (150, 150, 155) if sum(fill) < 150 else mix(fill, (15, 12, 20), 0.75)
        text = lettering(str(NUMBER_WORDS.index(scene.word)), fill, rim, rng.uniform(-20, 20), extent)
        box = paste(image, text, *rng.uniform(40, 88, 2))
    if scene.sort == "sign":
        box = paste(image, board(rng, scene.word, scene.color), rng.uniform(50, 78), rng.uniform(50, 90))
    if scene.word:
        objects.append({"words": [scene.color, "number" if scene.sort == "digit" else "sign", scene.word],
                        "box": box})
    return finish(rng, image), objects


def questions(rng, scene, held, count, short=False):
    """Up to `count` questions of different types. If `short`, they have at most 8 words, to be spoken."""
    asker, weights, found = Asker(rng, scene, held), dict(WEIGHTS[scene.sort]), []
    while weights and len(found) < count:
        names, shares = list(weights), np.array(list(weights.values()))
        name = names[rng.choice(len(names), p=shares / shares.sum())]
        for _ in range(6):
            asked = asker.ask(name)
            if asked and not (short and max(len(t.split()) for t in (asked.text, asked.yes, asked.no)) > 8):
                found.append(asked)
                break
        del weights[name]
    return found


def sample(name, seed, out, index):
    """Draw and write one picture. Returns its path, its objects, its description and its questions."""
    folder, stream, total, shares = SETS[name]
    rng = np.random.default_rng((seed, stream, index))
    held, spoken = name.endswith("val"), name.startswith("spoken")
    sorts = list(shares)
    scene = SCENES[sorts[rng.choice(len(sorts), p=np.array([shares[s] for s in sorts]) / 100)]](rng, held)
    path = f"img/{name.removeprefix('spoken_')}_{index:0{4 if spoken else 5}d}.webp"
    image, shown = render(rng, scene)
    image.save(Path(out, folder, path), quality=QUALITY, method=6)
    return path, shown, describe(scene), questions(rng, scene, held, 1 if held or spoken else 5, spoken)


def settle(asked, turns):
    """Text and answer. For each wording, yes and no alternate, so that each is right half of the time."""
    if asked.kind != "yesno":
        return asked.text, asked.answer
    wording = " ".join(asked.yes.split()[:2]), len(asked.yes.split())
    turns[wording] = not turns.get(wording, len(turns) % 2 == 0)
    return (asked.yes, "yes") if turns[wording] else (asked.no, "no")


def chat(rng, path, turns):
    """A manifest line. The picture goes with the first message, mostly before its text."""
    messages = []
    for i, (text, answer) in enumerate(turns):
        if i == 0:
            text = f"<image>{text}" if rng.random() < 0.8 else f"{text}<image>"
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [path]}


def lines(name, seed, samples):
    """The lines of a set's manifest."""
    rng, turns = np.random.default_rng((seed, SETS[name][1])), {}
    for index, (path, shown, description, asked) in enumerate(samples):
        if name == "val" or name.startswith("spoken"):
            describing = index % VAL_DESCRIPTIONS == VAL_DESCRIPTIONS - 1 or not asked
            text, answer = (DESCRIBE, description) if describing else settle(asked[0], turns)
            kind = "describe" if describing else asked[0].kind
            if name == "val":
                task = "text" if describing else "qa"
                yield {**chat(rng, path, [(text, answer)]), "task": task, "kind": kind}
            else:
                text = text.lower().translate(str.maketrans("", "", ".,?"))
                yield {"image": path, "question": text, "answer": answer, "kind": kind}
            continue
        pairs = [settle(a, turns) for a in asked]
        long = [(DESCRIBE, description), *pairs[:3]]
        yield {**chat(rng, path, [long[i] for i in rng.permutation(len(long))]), "objects": shown}
        # No yes-or-no question is asked twice, which would upset the balance of yes and no.
        rest = [p for a, p in zip(asked, pairs, strict=True) if a.kind != "yesno"]
        yield chat(rng, path, pairs[3:] or rest[:1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--procs", type=int, default=2)
    args = parser.parse_args()
    for name, (folder, _, total, _) in SETS.items():
        root = Path(args.out, folder)
        (root / "img").mkdir(parents=True, exist_ok=True)
        with Pool(args.procs) as pool:
            work = pool.imap(partial(sample, name, args.seed, args.out), range(total), chunksize=25)
            samples = list(tqdm(work, name, total))
        manifest = f"questions_{name.removeprefix('spoken_')}" if name.startswith("spoken") else name
        mode = "w"
        if name == "counting":  # its lines follow those of "train", in the same manifest
            manifest, mode = "train", "a"
        with open(root / f"{manifest}.jsonl", mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(name, args.seed, samples))


if __name__ == "__main__":
    main()
